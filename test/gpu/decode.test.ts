/** The decode loop again where it runs ahead of the tokens that were told. */
import { useGpu } from '../engine/test-device.js';

useGpu();
await import('../engine/decode.test.js');
