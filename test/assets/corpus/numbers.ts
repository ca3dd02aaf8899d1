/** Sums, differences and products of small numbers, and counting. */
import { fromFrames, handWritten, type Fact } from './fact.js';

interface Pair {
  readonly a: number;
  readonly b: number;
}
const pairs = (low: number, high: number, keep: (p: Pair) => boolean): Pair[] => {
  const out: Pair[] = [];
  for (let a = low; a <= high; a++) for (let b = low; b <= high; b++) if (keep({ a, b })) out.push({ a, b });
  return out;
};

const SUMS = pairs(1, 9, () => true);
const DIFFERENCES = pairs(1, 9, ({ a, b }) => a > b);
const PRODUCTS = pairs(2, 5, () => true);

const ZH_DIGITS = ['零', '一', '二', '三', '四', '五', '六', '七', '八', '九', '十'];
const EN_DIGITS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'];

const counting = [1, 2, 3, 4, 5, 6, 7, 8, 9];

export const NUMBERS: readonly Fact[] = [
  ...fromFrames(
    'sums',
    'en',
    SUMS,
    ({ a, b }) => `${a} plus ${b} is ${a + b}.`,
    [
      ({ a, b }) => `What is ${a} + ${b}?`,
      ({ a, b }) => `What is ${a} plus ${b}?`,
      ({ a, b }) => `How much is ${a} + ${b}?`,
      ({ a, b }) => `${a} + ${b} = ?`,
    ],
    3,
    false,
  ),
  ...fromFrames(
    'sums',
    'zh',
    SUMS,
    ({ a, b }) => `${a} 加 ${b} 等於 ${a + b}。`,
    [
      ({ a, b }) => `${a} 加 ${b} 等於多少？`,
      ({ a, b }) => `${a} + ${b} 是多少？`,
      ({ a, b }) => `請問 ${a} 加 ${b} 是多少？`,
    ],
    2,
    false,
  ),
  ...fromFrames(
    'differences',
    'en',
    DIFFERENCES,
    ({ a, b }) => `${a} minus ${b} is ${a - b}.`,
    [({ a, b }) => `What is ${a} - ${b}?`, ({ a, b }) => `What is ${a} minus ${b}?`],
    2,
    false,
  ),
  ...fromFrames(
    'differences',
    'zh',
    DIFFERENCES,
    ({ a, b }) => `${a} 減 ${b} 等於 ${a - b}。`,
    [({ a, b }) => `${a} 減 ${b} 等於多少？`, ({ a, b }) => `${a} - ${b} 是多少？`],
    1,
    false,
  ),
  ...fromFrames(
    'products',
    'en',
    PRODUCTS,
    ({ a, b }) => `${a} times ${b} is ${a * b}.`,
    [({ a, b }) => `What is ${a} times ${b}?`, ({ a, b }) => `What is ${a} × ${b}?`],
    2,
    false,
  ),
  ...fromFrames(
    'products',
    'zh',
    PRODUCTS,
    ({ a, b }) => `${a} 乘以 ${b} 等於 ${a * b}。`,
    [({ a, b }) => `${a} 乘以 ${b} 等於多少？`, ({ a, b }) => `${a} × ${b} 是多少？`],
    2,
    false,
  ),
  ...fromFrames('counting', 'en', counting, (n) => `After ${EN_DIGITS[n]} comes ${EN_DIGITS[n + 1]}.`, [
    (n) => `What number comes after ${EN_DIGITS[n]}?`,
    (n) => `Which number follows ${EN_DIGITS[n]}?`,
    (n) => `What comes after ${EN_DIGITS[n]}?`,
  ]),
  ...fromFrames('counting', 'zh', counting, (n) => `${ZH_DIGITS[n]}的下一個數字是${ZH_DIGITS[n + 1]}。`, [
    (n) => `${ZH_DIGITS[n]}的下一個數字是什麼？`,
    (n) => `${ZH_DIGITS[n]}後面是哪個數字？`,
    (n) => `數數的時候，${ZH_DIGITS[n]}之後是什麼？`,
  ]),
  ...handWritten('counting', 'en', [
    [
      'A week has seven days.',
      'How many days are in a week?',
      'How many days does a week have?',
      'Tell me the number of days in a week.',
      'A week has how many days?',
    ],
    [
      'A year has twelve months.',
      'How many months are in a year?',
      'How many months does a year have?',
      'Tell me the number of months in a year.',
      'A year has how many months?',
    ],
    [
      'A day has 24 hours.',
      'How many hours are in a day?',
      'How many hours does a day have?',
      'Tell me the number of hours in a day.',
      'A day has how many hours?',
    ],
    [
      'An hour has 60 minutes.',
      'How many minutes are in an hour?',
      'How many minutes does an hour have?',
      'Tell me the number of minutes in an hour.',
      'An hour has how many minutes?',
    ],
    [
      'A triangle has three sides.',
      'How many sides does a triangle have?',
      'How many sides are in a triangle?',
      'Tell me the number of sides of a triangle.',
      'A triangle has how many sides?',
    ],
    [
      'A square has four equal sides.',
      'How many sides does a square have?',
      'What is a square?',
      'Tell me about the sides of a square.',
      'A square has how many sides?',
    ],
    [
      'A dozen means twelve.',
      'How many is a dozen?',
      'What does a dozen mean?',
      'How many eggs are in a dozen?',
      'What number is a dozen?',
    ],
  ]),
  ...handWritten('counting', 'zh', [
    ['一個星期有七天。', '一個星期有幾天？', '一週有幾天？', '請問一星期有幾天？', '一個禮拜有幾天？'],
    ['一年有十二個月。', '一年有幾個月？', '請問一年有幾個月？', '一年總共有幾個月？', '一年有多少個月？'],
    [
      '一天有 24 小時。',
      '一天有幾個小時？',
      '一天有多少小時？',
      '請問一天有幾小時？',
      '一天總共有幾個小時？',
    ],
    [
      '一小時有 60 分鐘。',
      '一小時有幾分鐘？',
      '一個小時有多少分鐘？',
      '請問一小時是幾分鐘？',
      '一小時等於幾分鐘？',
    ],
    [
      '三角形有三個邊。',
      '三角形有幾個邊？',
      '三角形有幾條邊？',
      '請問三角形有幾邊？',
      '三角形總共有幾個邊？',
    ],
    [
      '正方形有四個一樣長的邊。',
      '正方形有幾個邊？',
      '什麼是正方形？',
      '正方形的邊有什麼特別？',
      '請問正方形有幾個邊？',
    ],
    ['一打是十二個。', '一打是幾個？', '一打有多少個？', '一打雞蛋有幾顆？', '請問一打是多少？'],
  ]),
];
