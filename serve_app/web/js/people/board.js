/** Everybody in the library, by the face that stands for them. Some can be chosen: to be one person, or to be hidden. */

import { confirmed } from "../components/dialogs.js";
import { fill, h, icon } from "../dom.js";
import { counted } from "../format.js";
import { Decisions, nameOf } from "./decisions.js";
import { faceTile, Held } from "./face_tile.js";
import { Pages } from "./pages.js";

/** @typedef {import("../types.js").Person} Person */

export class Board {
    /** @type {Pages<Person> | null} */
    #pages = null;
    /** @type {Map<string, Person>} */
    #chosen = new Map();
    #held = new Held();
    #list = h("ul", { class: "people" });
    #said = h("p", { class: "said", role: "status" });
    #more = h("button", { type: "button", class: "button", hidden: true, onclick: () => void this.#load() }, "Show more");
    #name = h("input", { id: "person-name", class: "input", type: "search", placeholder: "Part of a name", maxlength: 200, autocomplete: "off" });
    #named = h("select", { id: "person-named", class: "input" }, ...options([["", "Everybody"], ["true", "With a name"], ["false", "Without a name"]]));
    #sort = h("select", { id: "person-sort", class: "input" }, ...options([["face_count", "Most faces"], ["name", "Name"], ["recent", "Newest"]]));
    #hidden = h("input", { id: "person-hidden", type: "checkbox" });
    #count = h("span", { class: "chosen-count", role: "status" });
    #merge = h("button", { type: "button", class: "button primary", onclick: () => void this.#mergeChosen() }, "Same person");
    #hide = h("button", { type: "button", class: "button", onclick: () => void this.#hideChosen() }, "Hide");
    #bar;
    #timer = 0;

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.decisions = new Decisions(app, () => this.reload());
        const clear = h("button", { type: "button", class: "button", onclick: () => this.#clear() }, "Cancel");
        this.#bar = h("div", { class: "chosen-bar", role: "group", "aria-label": "Chosen persons", hidden: true }, this.#count, this.#merge, this.#hide, clear);
        const head = h(
            "div",
            { class: "view-head" },
            h("h1", {}, "People"),
            h("a", { href: "/journal", class: "button" }, icon("journal"), "Journal"),
            h("a", { href: "/people/review", class: "button primary", dataset: { needs: "write" } }, icon("review"), "Same person?"),
        );
        const fields = [["Name", this.#name], ["Show", this.#named], ["Order", this.#sort]].map(([text, field]) =>
            h("div", { class: "field" }, h("label", { for: /** @type {HTMLElement} */ (field).id }, /** @type {string} */ (text)), /** @type {HTMLElement} */ (field)),
        );
        const form = h("form", { class: "filter-row", role: "search", "aria-label": "Filter people", onsubmit: (/** @type {Event} */ event) => event.preventDefault() }, ...fields, h("label", { class: "check" }, this.#hidden, "Hidden ones"));
        this.element = h("div", {}, head, form, this.#said, this.#list, this.#more, this.#bar);
        for (const field of [this.#named, this.#sort, this.#hidden]) field.addEventListener("change", () => this.reload());
        this.#name.addEventListener("input", () => {
            clearTimeout(this.#timer);
            this.#timer = setTimeout(() => this.reload(), 250);
        });
    }

    reload() {
        this.#pages?.stop();
        this.#chosen.clear();
        this.#pages = new Pages(this.app.api, "/persons", {
            limit: 120,
            name: this.#name.value.trim(),
            named: this.#named.value,
            sort: this.#sort.value,
            hidden: this.#hidden.checked,
        });
        void this.#load();
    }

    stop() {
        this.#pages?.stop();
        this.#held.release();
    }

    async #load() {
        const pages = this.#pages;
        if (!pages) return;
        const first = !pages.items.length;
        try {
            const found = await pages.more();
            if (pages !== this.#pages) return;
            if (first) {
                this.#held.release();
                fill(this.#list);
            }
            this.#list.append(...found.map((person) => this.#tile(person)));
            const searching = this.#name.value || this.#named.value || this.#hidden.checked;
            const nobody = searching ? "Nobody fits." : "Nobody yet. Faces are grouped after photos were added.";
            this.#said.textContent = pages.items.length ? (pages.done ? counted(pages.items.length, "person", "persons") : "") : nobody;
            this.#said.classList.toggle("empty", !pages.items.length);
            this.#more.hidden = pages.done;
            this.#showChosen();
        } catch (error) {
            this.#said.textContent = error instanceof Error ? error.message : String(error);
        }
    }

    /** @param {Person} person */
    #tile(person) {
        const name = nameOf(person);
        const box = h("input", { type: "checkbox", class: "person-box", dataset: { needs: "write" }, "aria-label": `Choose ${name}, ${counted(person.face_count, "face")}` });
        box.addEventListener("change", () => {
            if (box.checked) this.#chosen.set(person.id, person);
            else this.#chosen.delete(person.id);
            this.#showChosen();
        });
        const picture = this.#held.keep(faceTile(this.app.pictures, person.cover_face_id, "", 180));
        const link = h(
            "a",
            { href: `/people/${person.id}`, class: "person-link" },
            picture,
            h("span", { class: person.name ? "person-name" : "person-name hint" }, name),
            h("span", { class: "hint" }, counted(person.photo_count, "photo")),
        );
        return h("li", { class: "person" }, link, box);
    }

    #showChosen() {
        const count = this.#chosen.size;
        this.#bar.hidden = count === 0;
        this.#count.textContent = count ? `${count} chosen` : "";
        this.#merge.disabled = count < 2;
        this.#hide.textContent = this.#hidden.checked ? "Show again" : "Hide";
    }

    #clear() {
        this.#chosen.clear();
        for (const box of this.#list.querySelectorAll("input")) box.checked = false;
        this.#showChosen();
    }

    /** Into the one with a name, else the one with the most faces. */
    async #mergeChosen() {
        const [target, ...sources] = [...this.#chosen.values()].sort((a, b) => Number(!!b.name) - Number(!!a.name) || b.face_count - a.face_count);
        const others = new Set(sources.map((person) => person.name).filter((name) => name && name !== target.name));
        const text = `${counted(this.#chosen.size, "person", "persons")} become one: ${nameOf(target)}.${others.size ? ` The other names are lost: ${[...others].join(", ")}.` : ""}`;
        if (!(await confirmed({ title: "Is this one person?", text, confirm: "Same person" }))) return;
        await this.decisions.make(`They are one person now: ${nameOf(target)}.`, "POST", `/persons/${target.id}/merge`, { source_person_ids: sources.map((person) => person.id) });
    }

    async #hideChosen() {
        const hidden = !this.#hidden.checked;
        const persons = [...this.#chosen.values()];
        const who = persons.length > 1 ? `${counted(persons.length, "person", "persons")} are` : `${nameOf(persons[0])} is`;
        const calls = persons.map((person) => ({ method: "PUT", path: `/persons/${person.id}`, body: { hidden } }));
        await this.decisions.makeAll(`${who} ${hidden ? "hidden" : "shown again"}.`, calls);
    }
}

/** @param {string[][]} given */
function options(given) {
    return given.map(([value, text]) => h("option", { value }, text));
}
