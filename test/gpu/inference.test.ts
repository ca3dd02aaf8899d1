/** Inference sessions again where steps run ahead: what a step too many did must not show. */
import { useGpu } from '../engine/test-device.js';

useGpu();
await import('../sessions/inference.test.js');
