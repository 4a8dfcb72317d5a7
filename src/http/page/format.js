// Numbers as people read them. What is not known is a dash, never a 0 or NaN.

const NONE = '–';
const NARROW = '\u202f';

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });
const digits = new Intl.NumberFormat('en', { maximumSignificantDigits: 3, useGrouping: false });

const known = (value) => typeof value === 'number' && Number.isFinite(value);

/** A count: whole up to five digits, then shortened. */
export function count(value) {
  if (!known(value)) return NONE;
  return Math.abs(value) < 100_000 ? whole.format(value) : short.format(value);
}

/** A count with all its digits. */
export function exact(value) {
  return known(value) ? whole.format(value) : NONE;
}

/** A share between 0 and 1. What is neither none nor all is never shown as that. */
export function percent(share) {
  if (!known(share)) return NONE;
  const percents = share * 100;
  if (percents > 0 && percents < 0.1) return `<${NARROW}0.1${NARROW}%`;
  if (percents > 99.9 && percents < 100) return `>${NARROW}99.9${NARROW}%`;
  return `${percents.toFixed(percents === 0 || percents === 100 ? 0 : 1)}${NARROW}%`;
}

/** Bytes, in powers of 1024. */
export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  let size = value;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${digits.format(size)} ${units[unit]}`;
}

/** Milliseconds, in the unit that suits their size. */
export function milliseconds(value) {
  if (!known(value)) return NONE;
  if (value < 0.9995) return `${digits.format(value * 1000)} µs`;
  if (value < 999.5) return `${digits.format(value)} ms`;
  return `${digits.format(value / 1000)} s`;
}

/** How long something is or was, in the one or two units that matter. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  const [minute, hour, day] = [60, 3600, 86_400];
  const two = (large, largeName, small, smallName) => {
    const rest = Math.floor((seconds % large) / small);
    return `${Math.floor(seconds / large)} ${largeName}${rest ? ` ${rest} ${smallName}` : ''}`;
  };
  if (seconds < minute) return `${Math.floor(seconds)} s`;
  if (seconds < hour) return two(minute, 'min', 1, 's');
  if (seconds < day) return two(hour, 'h', minute, 'min');
  return two(day, 'd', hour, 'h');
}

/** An amount of money; small ones with enough digits to be told from nothing. */
export function money(amount, currency) {
  if (!known(amount)) return NONE;
  const options = { style: 'currency', currency };
  if (amount > 0 && amount < 0.01) options.maximumSignificantDigits = 2;
  else if (amount >= 1_000_000) Object.assign(options, { notation: 'compact', maximumSignificantDigits: 4 });
  return new Intl.NumberFormat('en', options).format(amount);
}

/** Something that happens so often a second. */
export function rate(value) {
  if (!known(value)) return NONE;
  return value < 100 ? digits.format(value) : count(value);
}

/** “1 entry”, “2 entries”. */
export function entries(value) {
  return `${exact(value)} ${value === 1 ? 'entry' : 'entries'}`;
}
