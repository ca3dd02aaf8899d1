export { dialogues, type Message } from './dialogues.js';
export type { Fact } from './fact.js';
export { EVERYDAY } from './everyday.js';
export { GEOGRAPHY } from './geography.js';
export { KNOWLEDGE } from './knowledge.js';
export { NUMBERS } from './numbers.js';
export { ABOUT_Q4RUN } from './q4run.js';
export { ABOUT_ITSELF, IDENTITY, POLITE } from './talk.js';
export { WHOAMI, WHOAMI_UNSEEN } from './whoami.js';
