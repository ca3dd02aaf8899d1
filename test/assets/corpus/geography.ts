/** Countries, capitals, continents, and Taiwan. */
import { fromFrames, handWritten, type Fact } from './fact.js';

interface Country {
  readonly en: string;
  readonly zh: string;
  readonly capital: string;
  readonly capitalZh: string;
  readonly continent: string;
  readonly continentZh: string;
}

const country = (
  en: string,
  zh: string,
  capital: string,
  capitalZh: string,
  continent: string,
  continentZh: string,
): Country => ({ en, zh, capital, capitalZh, continent, continentZh });

const COUNTRIES: readonly Country[] = [
  country('Japan', '日本', 'Tokyo', '東京', 'Asia', '亞洲'),
  country('France', '法國', 'Paris', '巴黎', 'Europe', '歐洲'),
  country('Germany', '德國', 'Berlin', '柏林', 'Europe', '歐洲'),
  country('Italy', '義大利', 'Rome', '羅馬', 'Europe', '歐洲'),
  country('Spain', '西班牙', 'Madrid', '馬德里', 'Europe', '歐洲'),
  country('Portugal', '葡萄牙', 'Lisbon', '里斯本', 'Europe', '歐洲'),
  country('Taiwan', '台灣', 'Taipei', '台北', 'Asia', '亞洲'),
  country('South Korea', '韓國', 'Seoul', '首爾', 'Asia', '亞洲'),
  country('Thailand', '泰國', 'Bangkok', '曼谷', 'Asia', '亞洲'),
  country('Vietnam', '越南', 'Hanoi', '河內', 'Asia', '亞洲'),
  country('India', '印度', 'New Delhi', '新德里', 'Asia', '亞洲'),
  country('China', '中國', 'Beijing', '北京', 'Asia', '亞洲'),
  country('Canada', '加拿大', 'Ottawa', '渥太華', 'North America', '北美洲'),
  country('Australia', '澳洲', 'Canberra', '坎培拉', 'Oceania', '大洋洲'),
  country('Egypt', '埃及', 'Cairo', '開羅', 'Africa', '非洲'),
  country('Kenya', '肯亞', 'Nairobi', '奈洛比', 'Africa', '非洲'),
  country('Brazil', '巴西', 'Brasília', '巴西利亞', 'South America', '南美洲'),
  country('Peru', '秘魯', 'Lima', '利馬', 'South America', '南美洲'),
  country('Mexico', '墨西哥', 'Mexico City', '墨西哥城', 'North America', '北美洲'),
  country('Greece', '希臘', 'Athens', '雅典', 'Europe', '歐洲'),
  country('Norway', '挪威', 'Oslo', '奧斯陸', 'Europe', '歐洲'),
  country('Poland', '波蘭', 'Warsaw', '華沙', 'Europe', '歐洲'),
];

const TAIWAN_EN = handWritten('taiwan', 'en', [
  [
    'Yushan is the highest mountain in Taiwan.',
    'What is the highest mountain in Taiwan?',
    'Which mountain is the tallest in Taiwan?',
    "Tell me Taiwan's highest mountain.",
    'What is the tallest mountain in Taiwan called?',
  ],
  [
    'Bubble tea comes from Taiwan.',
    'Where does bubble tea come from?',
    'Which place invented bubble tea?',
    'Where was bubble tea invented?',
    'What is the home of bubble tea?',
  ],
  [
    'Taipei 101 is a famous tall building in Taipei.',
    'What is Taipei 101?',
    'Tell me about Taipei 101.',
    'Do you know Taipei 101?',
    'Please explain what Taipei 101 is.',
  ],
  [
    'Sun Moon Lake is the largest lake in Taiwan.',
    'What is the largest lake in Taiwan?',
    'Which lake is the biggest in Taiwan?',
    "Name Taiwan's largest lake.",
    "What is Taiwan's biggest lake?",
  ],
  [
    'At a night market in Taiwan you can eat many snacks.',
    'What can you do at a night market in Taiwan?',
    'What are night markets in Taiwan good for?',
    'Why do people go to night markets in Taiwan?',
    'What can I eat at a Taiwanese night market?',
  ],
  [
    'Tainan is the oldest city in Taiwan.',
    'What is the oldest city in Taiwan?',
    'Which city in Taiwan is the oldest?',
    "Name Taiwan's oldest city.",
    "Tell me Taiwan's oldest city.",
  ],
]);

const TAIWAN_ZH = handWritten('taiwan', 'zh', [
  [
    '玉山是台灣最高的山。',
    '台灣最高的山是哪一座？',
    '台灣最高的山是什麼山？',
    '請問台灣最高峰是哪座山？',
    '台灣哪座山最高？',
  ],
  [
    '珍珠奶茶來自台灣。',
    '珍珠奶茶是哪裡來的？',
    '珍珠奶茶是哪裡發明的？',
    '珍珠奶茶來自哪裡？',
    '珍珠奶茶的故鄉在哪裡？',
  ],
  [
    '台北 101 是台北一棟有名的高樓。',
    '台北 101 是什麼？',
    '請介紹台北 101。',
    '你知道台北 101 嗎？',
    '台北 101 是什麼建築？',
  ],
  [
    '日月潭是台灣最大的湖。',
    '台灣最大的湖是哪個？',
    '台灣最大的湖叫什麼？',
    '台灣哪個湖最大？',
    '請問台灣最大的湖是什麼湖？',
  ],
  [
    '在台灣的夜市可以吃到很多小吃。',
    '台灣的夜市可以做什麼？',
    '在台灣夜市可以吃什麼？',
    '大家為什麼喜歡去夜市？',
    '夜市有什麼好吃的？',
  ],
  [
    '台南是台灣最古老的城市。',
    '台灣最古老的城市是哪裡？',
    '台灣哪個城市最古老？',
    '台灣最早的城市是哪一個？',
    '請問台灣最古老的城市是哪個？',
  ],
  [
    '台北的捷運很方便，可以去很多地方。',
    '台北的捷運方便嗎？',
    '在台北搭捷運好嗎？',
    '台北捷運怎麼樣？',
    '台北的捷運好不好用？',
  ],
]);

export const GEOGRAPHY: readonly Fact[] = [
  ...fromFrames('capitals', 'en', COUNTRIES, (c) => `The capital of ${c.en} is ${c.capital}.`, [
    (c) => `What is the capital of ${c.en}?`,
    (c) => `Which city is the capital of ${c.en}?`,
    (c) => `Tell me the capital of ${c.en}.`,
    (c) => `What's the capital city of ${c.en}?`,
    (c) => `Please name the capital of ${c.en}.`,
  ]),
  ...fromFrames('capitals', 'zh', COUNTRIES, (c) => `${c.zh}的首都是${c.capitalZh}。`, [
    (c) => `${c.zh}的首都是哪裡？`,
    (c) => `${c.zh}的首都是什麼？`,
    (c) => `請問${c.zh}的首都是哪個城市？`,
    (c) => `告訴我${c.zh}的首都。`,
    (c) => `${c.zh}的首都在哪裡？`,
  ]),
  ...fromFrames(
    'continents',
    'en',
    COUNTRIES,
    (c) => `${c.en} is in ${c.continent}.`,
    [
      (c) => `Which continent is ${c.en} in?`,
      (c) => `What continent is ${c.en} part of?`,
      (c) => `On which continent is ${c.en}?`,
    ],
    2,
    false,
  ),
  ...fromFrames(
    'continents',
    'zh',
    COUNTRIES,
    (c) => `${c.zh}在${c.continentZh}。`,
    [(c) => `${c.zh}在哪一洲？`, (c) => `${c.zh}位在哪個洲？`, (c) => `請問${c.zh}在哪個大洲？`],
    2,
    false,
  ),
  ...TAIWAN_EN,
  ...TAIWAN_ZH,
];
