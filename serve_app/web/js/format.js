/** Dates, numbers and rates as people read them. The pages are in English, so are these. */

/** @typedef {import("./types.js").Photo} Photo */

const LOCALE = navigator.languages.find((one) => one.startsWith("en")) ?? "en-GB";
/** @param {Intl.DateTimeFormatOptions} options */
const inUtc = (options) => new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", ...options });
const MONTH = inUtc({ month: "long", year: "numeric" });
const DAY = inUtc({ weekday: "short", day: "numeric", month: "long", year: "numeric" });
const CLOCK = inUtc({ hour: "2-digit", minute: "2-digit" });
const MOMENT = new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: "short" });
const HERE = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit" });
const NUMBER = new Intl.NumberFormat(LOCALE);

/** What the camera's clock showed, else the moment it is sorted by; as if it were UTC. @param {Photo} photo @returns {Date} */
export function shownDate(photo) {
    return new Date(photo.taken_local ? `${photo.taken_local.replace(/Z$/, "")}Z` : photo.taken_at);
}

/** @param {string} key  `2024-08`. @returns {string} */
export function monthName(key) {
    return MONTH.format(new Date(`${key}-01T00:00:00Z`));
}

/** The month a photo stands in, as `2024-08`. @param {Photo} photo @returns {string} */
export function monthOf(photo) {
    return shownDate(photo).toISOString().slice(0, 7);
}

/** @param {Photo} photo @returns {string} */
export function dayOf(photo) {
    return DAY.format(shownDate(photo));
}

/** With the camera's zone, where it said one. @param {Photo} photo @returns {string} */
export function takenOf(photo) {
    if (!photo.taken_local) return "";
    const offset = photo.taken_offset_min;
    const date = shownDate(photo);
    const zone = offset === null ? "" : ` UTC${offset < 0 ? "\u2212" : "+"}${clock(Math.abs(offset))}`;
    return `${DAY.format(date)}, ${CLOCK.format(date)}${zone}`;
}

/** @param {number} minutes @returns {string} */
function clock(minutes) {
    const rest = minutes % 60;
    return `${Math.floor(minutes / 60)}${rest ? `:${String(rest).padStart(2, "0")}` : ""}`;
}

/** In the zone of the visitor. @param {string} iso @returns {string} */
export function moment(iso) {
    return MOMENT.format(new Date(iso));
}

/** @param {number} value @returns {string} */
export function number(value) {
    return NUMBER.format(value);
}

/** @param {number} count @param {string} one @param {string} [many] @returns {string} */
export function counted(count, one, many = `${one}s`) {
    return `${NUMBER.format(count)} ${count === 1 ? one : many}`;
}

/** @param {number} bytes @returns {string} */
export function size(bytes) {
    if (bytes < 1000) return `${bytes} B`;
    const power = Math.min(3, Math.floor(Math.log10(bytes) / 3));
    const value = bytes / 1000 ** power;
    return `${value.toFixed(value < 10 ? 1 : 0)} ${["B", "kB", "MB", "GB"][power]}`;
}

/** @param {number} value @returns {string} */
export function milliseconds(value) {
    if (value >= 9950) return `${Math.round(value / 1000)} s`;
    if (value >= 995) return `${(value / 1000).toFixed(1)} s`;
    return `${value < 9.95 && value > 0 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** In the zone of the visitor. @param {number} seconds  Since 1970. @returns {string} */
export function clockTime(seconds) {
    return HERE.format(new Date(seconds * 1000));
}

/** A rate in words: 0.0004 is "4 in 10,000". @param {number} rate @returns {string} */
export function oftenness(rate) {
    if (rate <= 0) return "none that was seen";
    let among = 100;
    while (rate * among < 3 && among < 1e9) among *= 10;
    return `${NUMBER.format(Math.round(rate * among))} in ${NUMBER.format(among)}`;
}

/** @param {number} seconds @returns {string} */
export function duration(seconds) {
    if (seconds < 1) return "less than a second";
    if (seconds < 90) return `${Math.round(seconds)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    if (seconds < 172_800) return `${(seconds / 3600).toFixed(1)} h`;
    return counted(Math.round(seconds / 86_400), "day");
}
