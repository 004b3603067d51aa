/** One box for names, places, dates, tags, and what photos show; and a face to look for. Each photo says why it was found. */

import { address, isAbort } from "../api.js";
import { PictureChoice } from "../components/picture_choice.js";
import { fill, h, icon } from "../dom.js";
import { decisionWords, scale, similarityText } from "../faces/scale.js";
import { counted, dayOf } from "../format.js";
import { faceTile } from "../people/face_tile.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {{term: string, field: string, text: string, how: string}} Match */
/**
 * @typedef {{
 *   photo: Photo, similarity: number | null, face_id: string | null, decision: import("../faces/scale.js").Decision,
 *   semantic_rank: number | null, complete: boolean, matches: Match[]
 * }} Hit
 */

const LIMIT = 60;
const HOW = { exact: "", beginning: "begins with it", sound: "sounds like it", typo: "spelt differently" };

export class SearchView {
    title = "Search";
    #text = h("input", { id: "search-text", class: "input search-text", type: "search", maxlength: 300, autocomplete: "off", placeholder: "anna beach august 2024" });
    #said = h("p", { class: "said", role: "status" });
    #meant = h("ul", { class: "chips", hidden: true, "aria-label": "What it was taken for" });
    #seen = h("section", { class: "seen card", hidden: true, "aria-label": "Who the face is" });
    #list = h("ul", { class: "hits" });
    #more = h("button", { type: "button", class: "button", hidden: true }, "Show more");
    #forget = h("button", { type: "button", class: "button", hidden: true, onclick: () => this.#forgetFace() }, "Search without the face");
    /** @type {(() => void)[]} */
    #held = [];
    #abort = new AbortController();
    #shown = "";
    /** @type {File | null} */
    #face = null;

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.choice = new PictureChoice("A face to look for", (file) => {
            this.#face = file;
            this.#forget.hidden = false;
            void this.#search(this.#text.value.trim());
        });
        const submit = (/** @type {Event} */ event) => (event.preventDefault(), this.#go());
        this.element = h(
            "div",
            { class: "view" },
            h("div", { class: "view-head" }, h("h1", {}, "Search")),
            h(
                "form",
                { class: "search-form", role: "search", onsubmit: submit },
                h("label", { for: "search-text" }, "Names, tags, places, dates, cameras"),
                h("div", { class: "search-row" }, this.#text, h("button", { class: "button primary" }, icon("search"), "Search")),
            ),
            h("details", { class: "search-face" }, h("summary", {}, "Search by a face"), this.choice.element, this.#forget),
            this.#said,
            this.#meant,
            this.#seen,
            this.#list,
            this.#more,
        );
        this.#more.addEventListener("click", () => void this.#load(this.#shown, this.#more.dataset.cursor ?? null));
    }

    /** @param {import("../types.js").Place} place */
    enter({ query }) {
        const text = query.get("q") ?? "";
        this.#text.value = text;
        if (text !== this.#shown) void this.#search(text);
        if (!text) queueMicrotask(() => this.#text.focus());
    }

    leave() {
        this.#abort.abort();
    }

    #go() {
        const text = this.#text.value.trim();
        if (text === this.#shown) void this.#search(text);
        else this.app.router.go(text ? `/search?q=${encodeURIComponent(text)}` : "/search");
    }

    #forgetFace() {
        this.#face = null;
        this.#forget.hidden = true;
        this.choice.clear();
        void this.#search(this.#shown);
    }

    /** @param {string} text */
    async #search(text) {
        this.#shown = text;
        for (const release of this.#held.splice(0)) release();
        fill(this.#list);
        this.#more.hidden = true;
        this.#meant.hidden = true;
        this.#seen.hidden = true;
        this.#said.textContent = "";
        if (text || this.#face) await this.#load(text, null);
    }

    /** @param {string} text @param {string | null} cursor */
    async #load(text, cursor) {
        this.#abort.abort();
        this.#abort = new AbortController();
        this.#said.textContent = "Searching";
        try {
            const found = this.#face ? await this.#withFace(text, this.#face) : await this.app.api.get("/search/photos", { q: text, limit: LIMIT, cursor }, this.#abort.signal);
            this.#show(found);
        } catch (error) {
            if (!isAbort(error)) this.#said.textContent = error instanceof Error ? error.message : String(error);
        }
    }

    /** @param {string} text @param {File} face */
    #withFace(text, face) {
        const form = new FormData();
        if (text) form.append("text", text);
        form.append("limit", String(LIMIT));
        form.append("file", face, face.name);
        return this.app.api.ask("/search/photos", form, this.#abort.signal);
    }

    /** @param {any} found */
    #show(found) {
        const { selfie } = found;
        this.#list.append(...found.items.map((/** @type {Hit} */ hit) => this.#hit(hit, selfie)));
        this.#seen.hidden = !selfie;
        if (selfie) this.#showSeen(selfie);
        this.#more.hidden = !found.next_cursor;
        this.#more.dataset.cursor = found.next_cursor ?? "";
        const count = this.#list.childElementCount;
        const parts = [
            count ? `${counted(count, "photo")}${found.next_cursor ? " so far" : ""}` : "Nothing was found",
            count && !found.complete ? "no photo has everything, these have most" : "",
            selfie ? selfieWords(selfie) : "",
            found.unread_photos ? `${counted(found.unread_photos, "photo")} cannot be found by text yet` : "",
        ];
        this.#said.textContent = `${parts.filter(Boolean).join("; ")}.`;
        const { persons, ignored, taken_from: from, taken_to: to } = found.understood;
        const chips = [
            ...persons.slice(0, 12).map((/** @type {{id: string, name: string}} */ person) => h("li", { class: "chip plain" }, h("a", { href: `/people/${person.id}` }, person.name))),
            from && h("li", { class: "chip plain" }, `from ${from}${to ? ` until before ${to}` : ""}`),
            ...ignored.map((/** @type {string} */ word) => h("li", { class: "chip plain" }, `not found: ${word}`)),
        ].filter(Boolean);
        fill(this.#meant, ...chips);
        this.#meant.hidden = !chips.length;
    }

    /** Whom it was taken for, and by which face of theirs. @param {any} selfie */
    #showSeen(selfie) {
        const { decision, best, second, threshold, suggest_threshold: suggest } = selfie;
        const point = { match: threshold, suggest, far: null, frr: null, dataSet: null };
        const who = [best, second].filter(Boolean).map((one, place) => {
            const [picture, release] = faceTile(this.app.pictures, one.face_id, place ? "" : "The face it was recognised by", 96);
            this.#held.push(release);
            const name = h("a", { href: `/people/${one.id}` }, one.name || "Unnamed");
            const words = `${place ? "Next" : "Most alike"}: similarity ${similarityText(one.similarity)}`;
            return h("li", { class: "seen-person" }, picture, h("div", {}, h("p", { class: "person-name" }, name), h("p", { class: "hint" }, words)));
        });
        const drawn = best ? scale(best.similarity, point) : null;
        fill(this.#seen, h("h2", {}, seenWords(decision, best)), h("ul", { class: "seen-persons" }, ...who), drawn);
    }

    /** @param {Hit} hit @param {any} selfie  What is known of the face that was looked for; null without one. */
    #hit(hit, selfie) {
        const { photo } = hit;
        const image = h("img", { alt: "", decoding: "async", draggable: "false" });
        this.#held.push(this.app.pictures.show(image, address(`/photos/${photo.id}/thumbnail`, { size: 320 })));
        const why = [
            ...hit.matches.map(({ term, field, text, how }) => `${field.replaceAll("_", " ")}: ${text}${HOW[/** @type {keyof typeof HOW} */ (how)] ? ` (${term}, ${HOW[/** @type {keyof typeof HOW} */ (how)]})` : ""}`),
            hit.semantic_rank ? "shows what was asked for" : "",
        ].filter(Boolean);
        const found = selfie && hit.similarity !== null ? this.#matched(hit, selfie) : null;
        return h(
            "li",
            { class: "hit" },
            h("a", { href: `/photos/${photo.id}`, class: "tile", "aria-label": `${photo.file_name}, ${dayOf(photo)}` }, image),
            h("p", { class: "hit-name" }, photo.file_name),
            why.length ? h("p", { class: "hint" }, why.join("; ")) : null,
            found,
        );
    }

    /** The face of the photo that is most like the one looked for. @param {Hit} hit @param {any} selfie */
    #matched({ face_id: faceId, similarity, decision }, selfie) {
        const [picture, release] = faceTile(this.app.pictures, faceId, "The most similar face in it", 44);
        this.#held.push(release);
        const known = selfie.decision === "match";
        const threshold = selfie.threshold === null ? "" : `, threshold ${selfie.threshold.toFixed(2)}`;
        // By itself it may be too unlike: others of the same person are not.
        const words = known && decision !== "match" ? `Known as ${selfie.best?.name || "the same person"} by other faces` : decisionWords(decision);
        return h("div", { class: "hit-face", dataset: { decision: decision ?? "" } }, picture, h("p", { class: "hint" }, h("strong", {}, words), h("br"), `Similarity ${similarityText(/** @type {number} */ (similarity))}${threshold}`));
    }
}

/** @param {import("../faces/scale.js").Decision} decision @param {any} best @returns {string} */
function seenWords(decision, best) {
    if (!best) return "Nobody is known yet";
    const name = best.name || "somebody without a name";
    if (decision === "match") return `This is ${name}`;
    if (decision === "ambiguous") return `This may be ${name}`;
    return decision === "unknown" ? "Nobody who is known" : `Most like ${name}`;
}

/** @param {any} selfie */
function selfieWords({ decision, best, threshold, face_count: faces }) {
    const who = best ? `${best.name || "somebody without a name"} (similarity ${similarityText(best.similarity)}, threshold ${threshold === null ? "not known" : threshold.toFixed(2)})` : "nobody known";
    return `${faces > 1 ? "the largest face" : "the face"}: ${decisionWords(decision).toLowerCase()} as ${who}`;
}
