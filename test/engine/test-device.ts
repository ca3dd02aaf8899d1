/** The device that tests of the engine and of sessions use: the CPU, unless they are run again for a GPU (test/gpu). */
import { openEngine, type Engine } from '../../runtime/engine/engine.js';

const CUDA = 'cuda';

export const onGpu = (): boolean => process.env['Q4RUN_TEST_DEVICE'] === CUDA;

/** From here on, in this process, tests open the GPU. */
export const useGpu = (): void => void (process.env['Q4RUN_TEST_DEVICE'] = CUDA);

export const openTestEngine = (threads: number): Engine =>
  onGpu() ? openEngine({ device: CUDA }) : openEngine({ device: 'cpu', threads });
