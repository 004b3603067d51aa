/** The last quarter of an hour: how long answers took (half of them, and 95 of 100), and how many there were. */

import { h, svg } from "../dom.js";
import { clockTime, milliseconds, number } from "../format.js";

/** @typedef {{at: number, requests: number, failed: number, refused: number, p50_ms: number | null, p95_ms: number | null}} Slot */
/** @typedef {{slot_s: number, kept_s: number, slots: Slot[]}} Requests */

/** So that letters keep their size. */
const NARROW = matchMedia("(max-width: 760px)");
const WIDTHS = { narrow: 360, wide: 720 };
const LEFT = 52;
const RIGHT = 8;
const TOP = 12;
const LINES = 150;
const GAP = 30;
const BARS = 44;
const HEIGHT = TOP + LINES + GAP + BARS + 22;
/** Slots that are drawn as one: a line of ten seconds each would be a comb. */
const TOGETHER = 3;
const STEPS = [1, 2, 5];

/** @param {Requests} requests @param {number} now  Seconds since 1970. @returns {HTMLElement} */
export function latencyPlot(requests, now) {
    const width = NARROW.matches ? WIDTHS.narrow : WIDTHS.wide;
    const wide = requests.slot_s * TOGETHER;
    const end = Math.ceil(now / wide) * wide;
    const start = end - requests.kept_s;
    const points = together(requests.slots, wide).filter(({ at }) => at >= start);
    const highest = top(Math.max(10, ...points.map(({ p95 }) => p95)));
    const most = top(Math.max(1, ...points.map(({ requests: count }) => count / wide)));
    const across = (/** @type {number} */ at) => LEFT + ((at - start) / (end - start)) * (width - LEFT - RIGHT);
    const up = (/** @type {number} */ ms) => TOP + LINES - (ms / highest) * LINES;
    const foot = TOP + LINES + GAP + BARS;
    const bar = ((width - LEFT - RIGHT) / (requests.kept_s / wide)) * 0.8;
    const drawing = svg(
        "svg",
        { viewBox: `0 0 ${width} ${HEIGHT}`, class: "plot", role: "img", "aria-label": inWords(points, requests.kept_s) },
        ...[0, highest / 2, highest].flatMap((ms) => [
            svg("line", { class: "plot-grid", x1: LEFT, x2: width - RIGHT, y1: up(ms), y2: up(ms) }),
            svg("text", { class: "plot-text", x: LEFT - 6, y: up(ms) + 4, "text-anchor": "end" }, milliseconds(ms)),
        ]),
        svg("line", { class: "plot-grid", x1: LEFT, x2: width - RIGHT, y1: foot, y2: foot }),
        svg("text", { class: "plot-text", x: LEFT - 6, y: foot - BARS + 10, "text-anchor": "end" }, `${round(most)} /s`),
        ...points.flatMap(({ at, requests: count, bad }) => {
            const height = (/** @type {number} */ part) => (part / wide / most) * BARS;
            return [
                svg("rect", { class: "plot-bar", x: across(at), y: foot - height(count), width: bar, height: height(count) }),
                bad ? svg("rect", { class: "plot-bar bad", x: across(at), y: foot - height(bad), width: bar, height: Math.max(2, height(bad)) }) : null,
            ];
        }),
        ...series(points, wide, across, up, "p95"),
        ...series(points, wide, across, up, "p50"),
        ...[0, 5, 10, 15].map((minutes) => {
            const at = end - minutes * 60;
            const anchor = minutes === 0 ? "end" : minutes === 15 ? "start" : "middle";
            return svg("text", { class: "plot-text", x: across(at), y: HEIGHT - 4, "text-anchor": anchor }, clockTime(at));
        }),
    );
    const key = (/** @type {string} */ name, /** @type {string} */ text) => h("li", {}, h("span", { class: `plot-key ${name}`, "aria-hidden": "true" }), text);
    return h(
        "div",
        { class: "plot-box" },
        drawing,
        h("ul", { class: "plot-keys" }, key("p50", "half of the answers began within"), key("p95", "95 of 100 within"), key("count", "requests a second"), key("bad", "of these failed or refused")),
        points.length ? h("details", {}, h("summary", {}, "As a table"), table(points, wide)) : null,
    );
}

/**
 * Percentiles of several slots cannot be had from theirs; the worst is told, so that nothing is hidden.
 * @param {Slot[]} slots @param {number} wide
 */
function together(slots, wide) {
    /** @type {Map<number, {at: number, requests: number, bad: number, p50: number, p95: number}>} */
    const found = new Map();
    for (const slot of slots) {
        const at = Math.floor(slot.at / wide) * wide;
        const one = found.get(at) ?? { at, requests: 0, bad: 0, p50: 0, p95: 0 };
        one.requests += slot.requests;
        // What is refused with 503 is among the failed ones.
        one.bad += Math.max(slot.failed, slot.refused);
        one.p50 = Math.max(one.p50, slot.p50_ms ?? 0);
        one.p95 = Math.max(one.p95, slot.p95_ms ?? 0);
        found.set(at, one);
    }
    return [...found.values()].sort((a, b) => a.at - b.at);
}

/** @typedef {ReturnType<typeof together>[number]} Point */

/**
 * A line where slots follow each other, a dot where one stands alone: nothing is drawn through times without requests.
 * @param {Point[]} points @param {number} wide @param {(at: number) => number} across @param {(ms: number) => number} up @param {"p50" | "p95"} which
 */
function series(points, wide, across, up, which) {
    /** @type {Point[][]} */
    const runs = [];
    for (const point of points) {
        const last = runs.at(-1);
        if (last?.at(-1) && point.at - last[last.length - 1].at === wide) last.push(point);
        else runs.push([point]);
    }
    const place = (/** @type {Point} */ { at, [which]: ms }) => `${across(at + wide / 2).toFixed(1)},${up(ms).toFixed(1)}`;
    return runs.map((run) => {
        if (run.length > 1) return svg("polyline", { class: `plot-line ${which}`, points: run.map(place).join(" ") });
        const [x, y] = place(run[0]).split(",");
        return svg("circle", { class: `plot-dot ${which}`, cx: x, cy: y, r: 3 });
    });
}

/** The next round number. @param {number} value @returns {number} */
function top(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return (STEPS.find((step) => step * power >= value) ?? 10) * power;
}

/** @param {number} value @returns {string} */
function round(value) {
    return value < 1 ? value.toPrecision(1) : number(Math.round(value));
}

/** @param {Point[]} points @param {number} kept @returns {string} */
function inWords(points, kept) {
    const minutes = Math.round(kept / 60);
    if (!points.length) return `No requests in the last ${minutes} minutes.`;
    const count = points.reduce((sum, one) => sum + one.requests, 0);
    const bad = points.reduce((sum, one) => sum + one.bad, 0);
    const slowest = points.reduce((worst, one) => (one.p95 > worst.p95 ? one : worst));
    return (
        `${number(count)} requests in the last ${minutes} minutes, ${bad ? number(bad) : "none"} of them failed or refused. ` +
        `Slowest at ${clockTime(slowest.at)}: 95 of 100 answers began within ${milliseconds(slowest.p95)}. The table has all of it.`
    );
}

/** @param {Point[]} points @param {number} wide */
function table(points, wide) {
    const head = ["From", "Requests", "Failed or refused", "Half within", "95 of 100 within"].map((name) => h("th", { scope: "col" }, name));
    const rows = [...points].reverse().map(({ at, requests, bad, p50, p95 }) =>
        h("tr", {}, h("th", { scope: "row" }, clockTime(at)), ...[number(requests), number(bad), milliseconds(p50), milliseconds(p95)].map((text) => h("td", {}, text))),
    );
    return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": `Requests, ${wide} seconds a row` }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)));
}
