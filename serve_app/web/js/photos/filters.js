/** Which photos are shown: a form, and the same as a part of the address, so that it can be kept and gone back to. */

import { fill, h, icon } from "../dom.js";

/** @typedef {import("../api.js").Query} Query */

const SINGLE = ["from", "to", "untagged", "sort", "order", "folder"];
const MANY = ["tag", "person"];
const MOST_TAGS = 20;

/** What of an address belongs to the filter. @param {URLSearchParams} given @returns {URLSearchParams} */
export function filterOf(given) {
    const kept = new URLSearchParams();
    for (const name of MANY) for (const value of given.getAll(name)) kept.append(name, value);
    for (const name of SINGLE) {
        const value = given.get(name);
        if (value !== null && (value !== "" || name === "folder")) kept.set(name, value);
    }
    return kept;
}

/** The same for the API. @param {URLSearchParams} filter @returns {Query} */
export function queryOf(filter) {
    /** @type {Query} */
    const query = { tag: filter.getAll("tag"), sort: filter.get("sort"), order: filter.get("order") };
    if (filter.has("person")) Object.assign(query, { person_id: filter.getAll("person"), persons: "all" });
    if (filter.get("untagged")) query.untagged = true;
    if (filter.get("from")) query.taken_from = `${filter.get("from")}T00:00:00Z`;
    const last = filter.get("to") ? new Date(`${filter.get("to")}T00:00:00Z`) : null;
    if (last && !Number.isNaN(last.getTime())) {
        // Up to and with this day.
        last.setUTCDate(last.getUTCDate() + 1);
        query.taken_to = last.toISOString();
    }
    return query;
}

export class Filters {
    #given = new URLSearchParams();
    /** What is in force; it stays in sight when the form is folded. */
    chips = h("ul", { class: "chips", "aria-label": "Filters in force" });
    #tag = h("input", { id: "filter-tag", class: "input", list: "known-tags", placeholder: "Tag", maxlength: 100, autocomplete: "off" });
    #known = h("datalist", { id: "known-tags" });
    #from = h("input", { id: "filter-from", class: "input", type: "date" });
    #to = h("input", { id: "filter-to", class: "input", type: "date" });
    #untagged = h("input", { id: "filter-untagged", type: "checkbox" });
    #order = h(
        "select",
        { id: "filter-order", class: "input" },
        h("option", { value: "" }, "Newest first"),
        h("option", { value: "asc" }, "Oldest first"),
        h("option", { value: "added" }, "Last added first"),
    );

    /** @param {(filter: URLSearchParams) => void} changed @param {(id: string) => Promise<string>} nameOfPerson */
    constructor(changed, nameOfPerson) {
        this.changed = changed;
        this.nameOfPerson = nameOfPerson;
        const add = (/** @type {Event} */ event) => (event.preventDefault(), this.#addTag());
        this.row = h(
            "form",
            { class: "filter-row", role: "search", "aria-label": "Filter photos", onsubmit: add },
            labelled("Tag", this.#tag),
            this.#known,
            labelled("From", this.#from),
            labelled("To", this.#to),
            labelled("Order", this.#order),
            h("label", { class: "check" }, this.#untagged, "Without tags"),
        );
        this.element = h(
            "details",
            // On a phone the photos come first.
            { class: "filters", open: !matchMedia("(max-width: 760px)").matches },
            h("summary", {}, "Filters"),
            this.row,
        );
        this.#tag.addEventListener("change", () => this.#addTag());
        for (const field of [this.#from, this.#to, this.#untagged, this.#order]) field.addEventListener("change", () => this.#tell());
    }

    /** @param {URLSearchParams} filter */
    show(filter) {
        this.#given = new URLSearchParams(filter);
        this.#from.value = filter.get("from") ?? "";
        this.#to.value = filter.get("to") ?? "";
        this.#untagged.checked = filter.get("untagged") !== null;
        this.#order.value = filter.get("sort") === "created_at" ? "added" : (filter.get("order") ?? "");
        const chips = filter.getAll("tag").map((tag) => this.#chip(tag, "tag", tag));
        const folder = filter.get("folder");
        if (folder !== null) chips.push(this.#chip(folder || "no folder", "folder", folder));
        for (const person of filter.getAll("person")) {
            const chip = this.#chip("\u2026", "person", person);
            chips.push(chip);
            void this.nameOfPerson(person).then((name) => chip.replaceWith(this.#chip(name, "person", person)));
        }
        fill(this.chips, ...chips);
        this.chips.hidden = !chips.length;
    }

    /** @param {{tag: string, photo_count: number}[]} tags  To choose from. */
    offer(tags) {
        fill(this.#known, ...tags.map(({ tag, photo_count }) => h("option", { value: tag }, String(photo_count))));
    }

    /** @param {string} text @param {string} name @param {string} value */
    #chip(text, name, value) {
        const remove = () => {
            this.#given.delete(name, value);
            this.changed(this.#given);
        };
        const title = `Remove the filter: ${name} ${text}`;
        return h("li", { class: "chip" }, h("span", {}, name === "tag" ? text : `${name}: ${text}`), h("button", { type: "button", class: "chip-button", "aria-label": title, onclick: remove }, icon("close")));
    }

    #addTag() {
        const tag = this.#tag.value.trim();
        this.#tag.value = "";
        if (!tag || this.#given.getAll("tag").includes(tag) || this.#given.getAll("tag").length >= MOST_TAGS) return;
        this.#given.append("tag", tag);
        this.changed(this.#given);
    }

    #tell() {
        set(this.#given, "from", this.#from.value);
        set(this.#given, "to", this.#to.value);
        set(this.#given, "untagged", this.#untagged.checked ? "1" : "");
        set(this.#given, "sort", this.#order.value === "added" ? "created_at" : "");
        set(this.#given, "order", this.#order.value === "asc" ? "asc" : "");
        this.changed(this.#given);
    }
}

/** @param {URLSearchParams} given @param {string} name @param {string} value */
function set(given, name, value) {
    if (value) given.set(name, value);
    else given.delete(name);
}

/** @param {string} text @param {HTMLElement} field */
function labelled(text, field) {
    return h("div", { class: "field" }, h("label", { for: field.id }, text), field);
}
