/** A similarity on a scale with the thresholds, and what the decision is worth, in words. */

import { h, svg } from "../dom.js";
import { oftenness } from "../format.js";

/** @typedef {import("../types.js").Point} Point */
/** @typedef {"match" | "ambiguous" | "unknown" | null} Decision */

const LOW = -0.2;
const WIDTH = 360;
const HEIGHT = 56;

/** @param {any} loaded  Of `GET /models`. @returns {Point} */
export function pointOf(loaded) {
    const { thresholds, accuracy } = loaded;
    return {
        match: thresholds.match,
        suggest: thresholds.suggest,
        far: accuracy?.far ?? null,
        frr: accuracy?.frr ?? null,
        dataSet: accuracy?.data_set ?? null,
    };
}

/** @param {number} similarity @param {Point} point @returns {Decision} */
export function decisionOf(similarity, { match, suggest }) {
    if (match === null) return null;
    if (similarity >= match) return "match";
    return suggest !== null && similarity >= suggest ? "ambiguous" : "unknown";
}

export const DECISIONS = { match: "Same person", ambiguous: "Perhaps the same person", unknown: "Not the same person" };

/** @param {Decision} decision @returns {string} */
export function decisionWords(decision) {
    return decision === null ? "No decision: this model has no measured threshold" : DECISIONS[decision];
}

/** Rounded down, so that what misses the threshold never reads as if it reached it. @param {number} value @returns {string} */
export function similarityText(value) {
    return (Math.floor(value * 1000) / 1000).toFixed(3);
}

/** @param {number} value @returns {number}  Across the drawing. */
function across(value) {
    return ((Math.max(LOW, Math.min(1, value)) - LOW) / (1 - LOW)) * WIDTH;
}

/** @param {number} similarity @param {Point} point @returns {HTMLElement} */
export function scale(similarity, point) {
    const decision = decisionOf(similarity, point);
    const { match, suggest } = point;
    const from = suggest ?? match;
    const zones = match === null || from === null ? [[LOW, 1, "none"]] : [[LOW, from, "unknown"], [from, match, "ambiguous"], [match, 1, "match"]];
    const marker = across(similarity);
    const text = `Similarity ${similarityText(similarity)}${match === null ? "" : `, threshold ${match.toFixed(2)}`}: ${decisionWords(decision)}`;
    const drawing = svg(
        "svg",
        { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "scale", role: "img", "aria-label": text },
        ...zones.map(([low, high, name]) => svg("rect", { class: `zone ${name}`, x: across(+low), y: 20, width: Math.max(0, across(+high) - across(+low)), height: 14 })),
        ...(match === null ? [] : [svg("line", { class: "tick", x1: across(match), x2: across(match), y1: 14, y2: 40 })]),
        ...(match === null ? [] : [svg("text", { class: "tick-text", x: across(match), y: 53, "text-anchor": "middle" }, `threshold ${match.toFixed(2)}`)]),
        svg("path", { class: "marker", d: `M${marker} 36l-7 -22h14z` }),
        svg("text", { class: "marker-text", x: Math.max(22, Math.min(WIDTH - 22, marker)), y: 11, "text-anchor": "middle" }, similarityText(similarity)),
    );
    return h("div", { class: "scale-box" }, drawing);
}

/** What the threshold is worth. @param {Point} point @returns {string} */
export function worth({ match, far, frr, dataSet }) {
    if (match === null) return "Nobody has measured a threshold for this model: judge by the similarity alone.";
    if (far === null || frr === null) return `The threshold of ${match.toFixed(2)} was set by the operator; how often it errs is not known.`;
    return (
        `At the threshold of ${match.toFixed(2)}, ${oftenness(far)} pairs of different people match by mistake, ` +
        `and ${oftenness(frr)} pairs of the same person are missed${dataSet ? ` (measured on ${dataSet})` : ""}. ` +
        "Among many comparisons mistakes add up."
    );
}

/** @param {number[]} a @param {number[]} b  Of unit length. @returns {number}  Their cosine. */
export function cosine(a, b) {
    return a.reduce((sum, value, place) => sum + value * b[place], 0);
}
