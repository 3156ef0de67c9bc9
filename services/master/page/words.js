// How numbers are said, and how text gets into the page: never as HTML.
const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function bytes(number) {
  let unit = 0;
  while (number >= 999.5 && unit < 5) { number /= 1000; unit += 1; }
  const digits = unit === 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return `${number.toFixed(digits)} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
}

export function duration(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [size, name] = units[first], rest = units[first + 1];
  const more = rest && Math.floor((seconds % size) / rest[0]);
  return `${Math.floor(seconds / size)} ${name}${more ? ` ${more} ${rest[1]}` : ""}`;
}

export function nodes(number) { return number === 1 ? "1 node" : `${count(number)} nodes`; }

export function make(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}
