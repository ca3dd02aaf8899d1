/** Name patterns: * stands for any characters, dots included, as in a shell. */
export function matches(pattern: string, name: string): boolean {
  const parts = pattern.split('*').map((text) => text.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${parts.join('.*')}$`).test(name);
}
