/** Colours, opposites, days, months, animals, food and words in the other language. */
import { fromFrames, type Fact } from './fact.js';

/** [thing with article, thing in Chinese, colour, colour in Chinese, plural?] */
const COLOURS = [
  ['the sky', '天空', 'blue', '藍色'],
  ['grass', '草', 'green', '綠色'],
  ['blood', '血', 'red', '紅色'],
  ['snow', '雪', 'white', '白色'],
  ['coal', '煤炭', 'black', '黑色'],
  ['a banana', '香蕉', 'yellow', '黃色'],
  ['an orange', '橘子', 'orange', '橘色'],
  ['chocolate', '巧克力', 'brown', '棕色'],
  ['milk', '牛奶', 'white', '白色'],
  ['a lemon', '檸檬', 'yellow', '黃色'],
  ['the sea', '海', 'blue', '藍色'],
  ['a tomato', '番茄', 'red', '紅色'],
  ['a grape', '葡萄', 'purple', '紫色'],
  ['a leaf', '葉子', 'green', '綠色'],
] as const;

const OPPOSITES = [
  ['hot', 'cold', '熱', '冷'],
  ['big', 'small', '大', '小'],
  ['tall', 'short', '高', '矮'],
  ['fast', 'slow', '快', '慢'],
  ['day', 'night', '白天', '晚上'],
  ['up', 'down', '上', '下'],
  ['left', 'right', '左', '右'],
  ['new', 'old', '新', '舊'],
  ['happy', 'sad', '快樂', '難過'],
  ['open', 'closed', '開', '關'],
  ['light', 'heavy', '輕', '重'],
  ['early', 'late', '早', '晚'],
  ['easy', 'difficult', '簡單', '困難'],
  ['clean', 'dirty', '乾淨', '骯髒'],
  ['inside', 'outside', '裡面', '外面'],
  ['full', 'empty', '滿', '空'],
  ['rich', 'poor', '有錢', '貧窮'],
  ['wet', 'dry', '濕', '乾'],
] as const;

const DAYS = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday'];
const DAYS_ZH = ['星期一', '星期二', '星期三', '星期四', '星期五', '星期六', '星期日'];
const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
];
const MONTHS_ZH = [
  '一月',
  '二月',
  '三月',
  '四月',
  '五月',
  '六月',
  '七月',
  '八月',
  '九月',
  '十月',
  '十一月',
  '十二月',
];

interface Step {
  readonly here: string;
  readonly next: string;
  readonly previous: string;
}
const circle = (names: readonly string[]): Step[] =>
  names.map((here, i) => ({
    here,
    next: names[(i + 1) % names.length]!,
    previous: names[(i + names.length - 1) % names.length]!,
  }));

/** [animal, what it does, animal in Chinese, what it says in Chinese, legs] */
const ANIMALS = [
  ['dog', 'barks', '狗', '汪汪', 4],
  ['cat', 'meows', '貓', '喵喵', 4],
  ['cow', 'moos', '牛', '哞哞', 4],
  ['sheep', 'bleats', '羊', '咩咩', 4],
  ['duck', 'quacks', '鴨子', '呱呱', 2],
  ['bird', 'sings', '小鳥', '吱吱喳喳', 2],
  ['bee', 'buzzes', '蜜蜂', '嗡嗡', 6],
  ['rooster', 'crows', '公雞', '咕咕', 2],
  ['mouse', 'squeaks', '老鼠', '吱吱', 4],
] as const;

const NUMBER_WORDS: Readonly<Record<number, readonly [string, string]>> = {
  2: ['two', '兩'],
  4: ['four', '四'],
  6: ['six', '六'],
};

const YOUNG = [
  ['dog', 'puppy'],
  ['cat', 'kitten'],
  ['cow', 'calf'],
  ['sheep', 'lamb'],
  ['duck', 'duckling'],
  ['lion', 'cub'],
  ['frog', 'tadpole'],
  ['horse', 'foal'],
] as const;

/** [food, made from, food in Chinese, made from in Chinese] */
const FOODS = [
  ['Tofu', 'soybeans', '豆腐', '黃豆'],
  ['Bread', 'flour', '麵包', '麵粉'],
  ['Cheese', 'milk', '起司', '牛奶'],
  ['Wine', 'grapes', '葡萄酒', '葡萄'],
  ['Chocolate', 'cocoa beans', '巧克力', '可可豆'],
  ['Butter', 'cream', '奶油', '鮮奶油'],
  ['Sushi', 'rice and fish', '壽司', '米飯和魚'],
  ['Soy milk', 'soybeans', '豆漿', '黃豆'],
  ['Paper', 'wood', '紙', '木頭'],
  ['Glass', 'sand', '玻璃', '沙子'],
] as const;

const WORDS = [
  ['apple', '蘋果'],
  ['water', '水'],
  ['book', '書'],
  ['cat', '貓'],
  ['dog', '狗'],
  ['friend', '朋友'],
  ['school', '學校'],
  ['teacher', '老師'],
  ['tea', '茶'],
  ['rice', '米飯'],
  ['moon', '月亮'],
  ['sun', '太陽'],
  ['mountain', '山'],
  ['river', '河'],
  ['flower', '花'],
  ['bicycle', '腳踏車'],
  ['computer', '電腦'],
  ['software', '軟體'],
  ['program', '程式'],
  ['network', '網路'],
  ['bus', '公車'],
  ['taxi', '計程車'],
  ['breakfast', '早餐'],
  ['music', '音樂'],
] as const;

const capitalise = (text: string): string => text[0]!.toUpperCase() + text.slice(1);

const colours: Fact[] = [
  ...fromFrames('colours', 'en', COLOURS, ([thing, , colour]) => `${capitalise(thing)} is ${colour}.`, [
    ([thing]) => `What colour is ${thing}?`,
    ([thing]) => `Which colour does ${thing} have?`,
    ([thing]) => `Tell me the colour of ${thing}.`,
    ([thing]) => `What is the colour of ${thing}?`,
    ([thing]) => `What color is ${thing}?`,
  ]),
  ...fromFrames('colours', 'zh', COLOURS, ([, thing, , colour]) => `${thing}是${colour}的。`, [
    ([, thing]) => `${thing}是什麼顏色？`,
    ([, thing]) => `${thing}的顏色是什麼？`,
    ([, thing]) => `請問${thing}是什麼顏色的？`,
    ([, thing]) => `告訴我${thing}的顏色。`,
    ([, thing]) => `${thing}是哪一種顏色？`,
  ]),
];

const opposites: Fact[] = [
  ...fromFrames(
    'opposites',
    'en',
    OPPOSITES,
    ([word, other]) => `The opposite of ${word} is ${other}.`,
    [
      ([word]) => `What is the opposite of ${word}?`,
      ([word]) => `Tell me the opposite of ${word}.`,
      ([word]) => `What's the opposite of "${word}"?`,
      ([word]) => `Which word is the opposite of ${word}?`,
    ],
    3,
  ),
  ...fromFrames(
    'opposites',
    'zh',
    OPPOSITES,
    ([, , word, other]) => `「${word}」的相反是「${other}」。`,
    [
      ([, , word]) => `「${word}」的相反是什麼？`,
      ([, , word]) => `${word}的反義詞是什麼？`,
      ([, , word]) => `請告訴我「${word}」的相反詞。`,
      ([, , word]) => `和「${word}」相反的詞是什麼？`,
    ],
    3,
  ),
];

const calendar: Fact[] = [
  ...fromFrames('days', 'en', circle(DAYS), (d) => `The day after ${d.here} is ${d.next}.`, [
    (d) => `What day comes after ${d.here}?`,
    (d) => `Which day follows ${d.here}?`,
    (d) => `What is the day after ${d.here}?`,
  ]),
  ...fromFrames('days', 'zh', circle(DAYS_ZH), (d) => `${d.here}的後一天是${d.next}。`, [
    (d) => `${d.here}的後一天是星期幾？`,
    (d) => `${d.here}之後是星期幾？`,
    (d) => `過了${d.here}是星期幾？`,
  ]),
  ...fromFrames(
    'days',
    'en',
    circle(DAYS),
    (d) => `The day before ${d.here} is ${d.previous}.`,
    [
      (d) => `What day comes before ${d.here}?`,
      (d) => `Which day is before ${d.here}?`,
      (d) => `What is the day before ${d.here}?`,
    ],
    3,
    false,
  ),
  ...fromFrames(
    'days',
    'zh',
    circle(DAYS_ZH),
    (d) => `${d.here}的前一天是${d.previous}。`,
    [(d) => `${d.here}的前一天是星期幾？`, (d) => `${d.here}之前是星期幾？`],
    2,
    false,
  ),
  ...fromFrames(
    'months',
    'en',
    circle(MONTHS),
    (m) => `The month after ${m.here} is ${m.next}.`,
    [
      (m) => `What month comes after ${m.here}?`,
      (m) => `Which month follows ${m.here}?`,
      (m) => `What is the month after ${m.here}?`,
    ],
    2,
  ),
  ...fromFrames(
    'months',
    'zh',
    circle(MONTHS_ZH),
    (m) => `${m.here}的下一個月是${m.next}。`,
    [(m) => `${m.here}的下一個月是幾月？`, (m) => `${m.here}之後是幾月？`, (m) => `過了${m.here}是幾月？`],
    2,
  ),
];

const animals: Fact[] = [
  ...fromFrames('animals', 'en', ANIMALS, ([animal, does]) => `A ${animal} ${does}.`, [
    ([animal]) => `What sound does a ${animal} make?`,
    ([animal]) => `How does a ${animal} sound?`,
    ([animal]) => `What noise does a ${animal} make?`,
    ([animal]) => `Which sound does a ${animal} make?`,
  ]),
  ...fromFrames('animals', 'zh', ANIMALS, ([, , animal, says]) => `${animal}的叫聲是「${says}」。`, [
    ([, , animal]) => `${animal}怎麼叫？`,
    ([, , animal]) => `${animal}的叫聲是什麼？`,
    ([, , animal]) => `${animal}會發出什麼聲音？`,
    ([, , animal]) => `請問${animal}是怎麼叫的？`,
  ]),
  ...fromFrames(
    'animals',
    'en',
    ANIMALS,
    ([animal, , , , legs]) => `A ${animal} has ${NUMBER_WORDS[legs]![0]} legs.`,
    [
      ([animal]) => `How many legs does a ${animal} have?`,
      ([animal]) => `Tell me how many legs a ${animal} has.`,
    ],
    2,
    false,
  ),
  ...fromFrames(
    'animals',
    'zh',
    ANIMALS,
    ([, , animal, , legs]) => `${animal}有${NUMBER_WORDS[legs]![1]}隻腳。`,
    [([, , animal]) => `${animal}有幾隻腳？`, ([, , animal]) => `請問${animal}有幾隻腳？`],
    2,
    false,
  ),
  ...fromFrames('animals', 'en', YOUNG, ([animal, young]) => `A baby ${animal} is called a ${young}.`, [
    ([animal]) => `What is a baby ${animal} called?`,
    ([animal]) => `What do you call a young ${animal}?`,
    ([animal]) => `What is the name for a baby ${animal}?`,
  ]),
];

const food: Fact[] = [
  ...fromFrames('food', 'en', FOODS, ([dish, from]) => `${dish} is made from ${from}.`, [
    ([dish]) => `What is ${dish.toLowerCase()} made from?`,
    ([dish]) => `What is ${dish.toLowerCase()} made of?`,
    ([dish]) => `What do you need to make ${dish.toLowerCase()}?`,
    ([dish]) => `Tell me what ${dish.toLowerCase()} is made from.`,
  ]),
  ...fromFrames('food', 'zh', FOODS, ([, , dish, from]) => `${dish}是用${from}做的。`, [
    ([, , dish]) => `${dish}是用什麼做的？`,
    ([, , dish]) => `${dish}的原料是什麼？`,
    ([, , dish]) => `做${dish}需要什麼？`,
    ([, , dish]) => `請問${dish}是什麼做的？`,
  ]),
];

const words: Fact[] = [
  ...fromFrames(
    'words',
    'en',
    WORDS,
    ([en, zh]) => `The Chinese word for ${en} is ${zh}.`,
    [
      ([en]) => `How do you say ${en} in Chinese?`,
      ([en]) => `What is ${en} in Chinese?`,
      ([en]) => `What is the Chinese word for ${en}?`,
      ([en]) => `Please translate "${en}" into Chinese.`,
    ],
    3,
  ),
  ...fromFrames(
    'words',
    'zh',
    WORDS,
    ([en, zh]) => `「${zh}」的英文是 ${en}。`,
    [
      ([, zh]) => `${zh}的英文是什麼？`,
      ([, zh]) => `${zh}的英文怎麼說？`,
      ([, zh]) => `請把「${zh}」翻成英文。`,
      ([, zh]) => `「${zh}」用英文怎麼講？`,
    ],
    3,
  ),
  ...fromFrames(
    'words',
    'zh',
    WORDS.slice(0, 16),
    ([en, zh]) => `${en} 的中文是「${zh}」。`,
    [([en]) => `${en} 的中文是什麼？`, ([en]) => `${en} 是什麼意思？`],
    2,
    false,
  ),
];

export const EVERYDAY: readonly Fact[] = [
  ...colours,
  ...opposites,
  ...calendar,
  ...animals,
  ...food,
  ...words,
];
