import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { didYouMean, distance, nearest } from '../../../runtime/runner/config/suggest.js';

test('distances', () => {
  assert.is(distance('', 'abc'), 3);
  assert.is(distance('kitten', 'sitting'), 3);
  assert.is(distance('steps', 'setps'), 1);
  assert.is(distance('same', 'same'), 0);
});

test('near words are suggested, far ones are not', () => {
  assert.is(nearest('lerning_rate', ['steps', 'learning_rate']), 'learning_rate');
  assert.is(nearest('learningRate', ['learning_rate', 'batch_size']), 'learning_rate');
  assert.is(nearest('banana', ['steps', 'epochs']), undefined);
  assert.is(nearest('x', []), undefined);
  assert.is(didYouMean('cosin', ['linear', 'cosine']), `did you mean 'cosine'?`);
});

test.run();
