/** Two photos side by side, and every face of the one against every face of the other. */

import { isAbort } from "../api.js";
import { PictureChoice } from "../components/picture_choice.js";
import { fill, h } from "../dom.js";
import { cosine, decisionOf, decisionWords, pointOf, scale, worth } from "../faces/scale.js";
import { counted } from "../format.js";

/** @typedef {import("../types.js").Face} Face */
/** @typedef {{a: number, b: number, similarity: number}} Pair */
/** @typedef {{choice: PictureChoice, faces: Face[], abort: AbortController}} Side */

const MOST_FACES = 30;
const MOST_PAIRS = 60;

export class CompareView {
    title = "Compare";
    #said = h("p", { class: "said", role: "status" });
    #pairs = h("ol", { class: "pairs" });
    #worth = h("p", { class: "hint worth" });
    /** @type {import("../types.js").Point | null} */
    #point = null;
    /** @type {Side[]} */
    #sides;

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.#sides = ["First photo", "Second photo"].map((label, place) => ({
            choice: new PictureChoice(label, (file) => void this.#look(place, file), (key) => this.#pointAt(key)),
            faces: [],
            abort: new AbortController(),
        }));
        this.element = h(
            "div",
            { class: "view" },
            h("div", { class: "view-head" }, h("h1", {}, "Compare")),
            h("p", { class: "lead" }, "Do two photos show the same person? Nothing is kept."),
            h("div", { class: "choices" }, ...this.#sides.map((side) => side.choice.element)),
            this.#said,
            this.#pairs,
            this.#worth,
        );
    }

    enter() {}

    leave() {
        for (const side of this.#sides) side.abort.abort();
    }

    /** @param {number} place @param {File} file */
    async #look(place, file) {
        const side = this.#sides[place];
        side.abort.abort();
        side.abort = new AbortController();
        side.faces = [];
        this.#show();
        side.choice.say("Looking for faces");
        const form = new FormData();
        for (const [name, value] of [["face", "all"], ["max_faces", String(MOST_FACES)]]) form.append(name, value);
        form.append("file", file, file.name);
        try {
            const { signal } = side.abort;
            this.#point ??= pointOf((await this.app.api.get("/models", {}, signal)).loaded);
            const answer = await this.app.api.ask("/face/extract-embedding", form, signal);
            side.faces = answer.faces;
            side.choice.draw(answer.image, side.faces.map((face, index) => ({ key: name(place, index), bbox: face.bbox, label: name(place, index) })));
            side.choice.say(counted(side.faces.length, "face"));
        } catch (error) {
            if (!isAbort(error)) side.choice.say(error instanceof Error ? error.message : String(error), true);
        }
        this.#show();
    }

    #show() {
        const [a, b] = this.#sides.map((side) => side.faces);
        const point = this.#point;
        for (const side of this.#sides) side.choice.overlay.emphasise([]);
        if (!a.length || !b.length || !point) {
            fill(this.#pairs);
            this.#said.textContent = a.length || b.length ? "Choose the other photo." : "";
            this.#worth.textContent = "";
            return;
        }
        /** @type {Pair[]} */
        const pairs = a.flatMap((one, i) => b.map((other, j) => ({ a: i, b: j, similarity: cosine(one.embedding ?? [], other.embedding ?? []) })));
        pairs.sort((one, other) => other.similarity - one.similarity);
        const matches = pairs.filter(({ similarity }) => decisionOf(similarity, point) === "match").length;
        const shown = pairs.slice(0, MOST_PAIRS);
        const rest = pairs.length > shown.length ? `; the ${MOST_PAIRS} most similar are listed` : "";
        this.#said.textContent = `${counted(pairs.length, "pair")} of faces, ${counted(matches, "match", "matches")}${rest}.`;
        fill(this.#pairs, ...shown.map((pair) => this.#row(pair, point)));
        this.#worth.textContent = worth(point);
    }

    /** @param {Pair} pair @param {import("../types.js").Point} point */
    #row({ a, b, similarity }, point) {
        const decision = decisionOf(similarity, point);
        const names = [name(0, a), name(1, b)];
        const emphasise = () => this.#emphasise(names);
        return h(
            "li",
            { class: "pair", dataset: { decision: decision ?? "none" } },
            h("button", { type: "button", class: "pair-names", onclick: emphasise, onfocus: emphasise, "aria-label": `Show ${names[0]} and ${names[1]}` }, `${names[0]} \u2013 ${names[1]}`),
            h("strong", { class: "pair-decision" }, decisionWords(decision)),
            scale(similarity, point),
        );
    }

    /** @param {string[]} names */
    #emphasise(names) {
        this.#sides.forEach((side, place) => side.choice.overlay.emphasise([names[place]]));
    }

    /** Its best pair. @param {string} key */
    #pointAt(key) {
        const row = [...this.#pairs.children].find((one) => one.firstElementChild?.textContent?.split(" \u2013 ").includes(key));
        /** @type {HTMLElement | null | undefined} */ (row?.firstElementChild)?.focus();
    }
}

/** @param {number} place @param {number} index @returns {string}  A1, A2 of the first photo, B1 of the second. */
function name(place, index) {
    return `${"AB"[place]}${index + 1}`;
}
