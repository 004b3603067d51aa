/** The journal: who decided what about people and faces, and taking it back. */

import { isAbort } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { moment } from "../format.js";
import { ACTIONS, sentenceOf } from "../journal/words.js";
import { Decisions, nameOf } from "../people/decisions.js";
import { Pages } from "../people/pages.js";

/** @typedef {import("../types.js").JournalEntry} JournalEntry */

export class JournalView {
    title = "Journal";
    /** @type {Pages<JournalEntry> | null} */
    #pages = null;
    /** @type {Map<string, string>} */
    #names = new Map();
    #query = new URLSearchParams();
    #list = h("ol", { class: "journal" });
    #said = h("p", { class: "said", role: "status" });
    #more = h("button", { type: "button", class: "button", hidden: true, onclick: () => void this.#load() }, "Show more");
    #person = h("div", { class: "chips", hidden: true });
    #action = h("select", { id: "journal-action", class: "input" }, h("option", { value: "" }, "Everything"), ...Object.entries(ACTIONS).map(([value, text]) => h("option", { value }, text)));

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.decisions = new Decisions(app, () => this.#begin());
        this.#action.addEventListener("change", () => {
            set(this.#query, "action", this.#action.value);
            this.#go();
        });
        const filter = h("div", { class: "field" }, h("label", { for: "journal-action" }, "Show"), this.#action);
        this.element = h(
            "div",
            { class: "view" },
            h("div", { class: "view-head" }, h("h1", {}, "Journal")),
            h("p", { class: "lead" }, "What was decided about people and faces. Everything here can be taken back."),
            h("div", { class: "filter-row" }, filter, this.#person),
            this.#said,
            this.#list,
            this.#more,
        );
    }

    /** @param {import("../types.js").Place} place */
    enter({ query }) {
        this.#query = new URLSearchParams();
        for (const name of ["action", "person"]) set(this.#query, name, query.get(name) ?? "");
        this.#action.value = this.#query.get("action") ?? "";
        void this.#showPerson(this.#query.get("person"));
        this.#begin();
    }

    leave() {
        this.#pages?.stop();
    }

    #go() {
        this.app.router.go(`/journal${this.#query.size ? `?${this.#query}` : ""}`);
    }

    /** @param {string | null} id */
    async #showPerson(id) {
        this.#person.hidden = !id;
        if (!id) return;
        const remove = () => (set(this.#query, "person", ""), this.#go());
        const chip = (/** @type {string} */ name) =>
            fill(this.#person, h("span", { class: "chip" }, h("span", {}, `about ${name}`), h("button", { type: "button", class: "chip-button", "aria-label": `Not only about ${name}`, onclick: remove }, icon("close"))));
        chip("\u2026");
        try {
            const person = await this.app.api.get(`/persons/${encodeURIComponent(id)}`);
            if (this.#query.get("person") === id) chip(nameOf(person));
        } catch {
            chip("somebody who is gone");
        }
    }

    #begin() {
        this.#pages?.stop();
        this.#pages = new Pages(this.app.api, "/journal", { limit: 50, action: this.#query.get("action"), person_id: this.#query.get("person") });
        void this.#load();
    }

    async #load() {
        const pages = this.#pages;
        if (!pages) return;
        const first = !pages.items.length;
        try {
            const found = await pages.more();
            if (pages !== this.#pages) return;
            for (const { id, name } of pages.last?.persons ?? []) this.#names.set(id, name);
            if (first) fill(this.#list);
            this.#list.append(...found.map((entry) => this.#line(entry)));
            this.#more.hidden = pages.done;
            this.#said.textContent = pages.items.length ? "" : this.#query.size ? "Nothing of the kind was done." : "Nothing was decided yet.";
            this.#said.classList.toggle("empty", !pages.items.length);
        } catch (error) {
            if (!isAbort(error)) this.#said.textContent = error instanceof Error ? error.message : String(error);
        }
    }

    /** @param {JournalEntry} entry */
    #line(entry) {
        const sentence = sentenceOf(entry, this.#names);
        const words = sentence.map((part) => (typeof part === "string" ? part : part.textContent)).join("");
        const again = entry.action === "undo";
        const text = again ? "Redo" : "Undo";
        const run = (/** @type {MouseEvent} */ event) => {
            // Once: the line is made anew after it.
            /** @type {HTMLButtonElement} */ (event.currentTarget).disabled = true;
            void this.decisions.undo([entry.id]);
        };
        const button = h("button", { type: "button", class: "button small", dataset: { needs: "write" }, "aria-label": `${text}: ${words}`, onclick: run }, icon(again ? "redo" : "undo"), text);
        return h(
            "li",
            { class: entry.undone_by ? "journal-entry undone" : "journal-entry" },
            h("div", { class: "journal-said" }, h("p", {}, ...sentence), h("p", { class: "hint" }, h("time", { datetime: entry.at }, moment(entry.at)), ` \u00b7 ${entry.actor}`)),
            entry.undone_by ? h("span", { class: "hint" }, again ? "Redone" : "Undone") : button,
        );
    }
}

/** @param {URLSearchParams} query @param {string} name @param {string} value */
function set(query, name, value) {
    if (value) query.set(name, value);
    else query.delete(name);
}
