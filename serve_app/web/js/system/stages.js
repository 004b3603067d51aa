/** Where the time of an average request went, as a bar of parts and in words. */

import { h } from "../dom.js";
import { milliseconds } from "../format.js";

/** `search` is part of `database`, and would count twice. @type {Record<string, string>} */
const NAMES = {
    receive: "Receiving",
    transport: "On the way to models",
    queue: "Waiting for a model",
    decode: "Decoding",
    detect: "Finding faces",
    align: "Cutting faces",
    embed: "Embedding",
    analyze: "Attributes",
    picture: "Thumbnails",
    semantic: "What photos show",
    connect: "Waiting for the database",
    database: "Database",
    objects: "Object store",
};

/** @param {Record<string, number>} stages  Milliseconds. @returns {HTMLElement | null} */
export function stageBars(stages) {
    const found = Object.entries(NAMES).filter(([name]) => stages[name] >= 0.05);
    const most = Math.max(...found.map(([name]) => stages[name]));
    if (!found.length) return null;
    const rows = found.map(([name, text]) => {
        const bar = h("span", { class: "stage-bar", "aria-hidden": "true" });
        bar.style.width = `${(stages[name] / most) * 100}%`;
        return h("div", {}, h("dt", {}, text), h("dd", {}, h("span", { class: "stage-value" }, milliseconds(stages[name])), h("span", { class: "stage-track", "aria-hidden": "true" }, bar)));
    });
    return h("div", {}, h("h3", {}, "Where the time of a request went, on average"), h("dl", { class: "facts stages" }, ...rows));
}
