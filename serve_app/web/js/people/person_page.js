/** One person: the name, the faces, and whether others are the same. */

import { isAbort } from "../api.js";
import { asked, confirmed } from "../components/dialogs.js";
import { fill, h } from "../dom.js";
import { counted } from "../format.js";
import { Decisions, nameOf } from "./decisions.js";
import { faceTile, Held } from "./face_tile.js";
import { nameGroup } from "./naming.js";
import { Pages } from "./pages.js";
import { Suggestions } from "./suggestions.js";

/** @typedef {import("../types.js").Person} Person */
/** @typedef {import("../types.js").LibraryFace} LibraryFace */

export class PersonPage {
    /** @type {Person | null} */
    #person = null;
    #id = "";
    /** @type {Pages<LibraryFace> | null} */
    #pages = null;
    /** @type {Set<string>} */
    #chosen = new Set();
    #held = new Held();
    #head = h("div", { class: "view-head" }, h("h1", {}, "Person"));
    #faces = h("ul", { class: "face-grid" });
    #more = h("button", { type: "button", class: "button", hidden: true, onclick: () => void this.#load() }, "Show more");
    #count = h("span", { class: "chosen-count", role: "status" });
    #cover = h("button", { type: "button", class: "button", onclick: () => void this.#setCover() }, "Use as cover");
    #bar;

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.decisions = new Decisions(app, () => void this.show(this.#id));
        this.suggestions = new Suggestions(app, this.decisions);
        const act = (/** @type {string} */ text, /** @type {() => Promise<unknown>} */ run) => h("button", { type: "button", class: "button", onclick: () => void run() }, text);
        this.#bar = h(
            "div",
            { class: "chosen-bar", role: "group", "aria-label": "Chosen faces", hidden: true },
            this.#count,
            act("Somebody else", () => this.#split()),
            act("Not this person", () => this.#reject()),
            act("Not a face", () => this.#hideFaces()),
            this.#cover,
            act("Cancel", async () => this.#clear()),
        );
        this.element = h("div", {}, h("p", {}, h("a", { href: "/people" }, "\u2190 People")), this.#head, this.suggestions.element, h("h2", {}, "Faces"), this.#faces, this.#more, this.#bar);
    }

    /** @param {string} id */
    async show(id) {
        const fresh = id !== this.#id;
        this.#id = id;
        this.#pages?.stop();
        this.#chosen.clear();
        if (fresh) fill(this.#faces);
        try {
            const person = await this.app.api.get(`/persons/${encodeURIComponent(id)}`);
            if (id !== this.#id) return;
            this.#person = person;
            this.#showHead(person);
            this.#pages = new Pages(this.app.api, `/persons/${id}/faces`, { limit: 120 });
            await this.#load();
            await this.suggestions.show(person);
        } catch (error) {
            if (isAbort(error) || id !== this.#id) return;
            this.app.toasts.fail(error, "This person cannot be shown.");
            this.app.router.go("/people", { replace: true });
        }
    }

    stop() {
        this.#pages?.stop();
        this.#held.release();
        this.#id = "";
        fill(this.#faces);
    }

    /** @param {Person} person */
    #showHead(person) {
        const name = h("h1", {}, nameOf(person));
        const rename = h("button", { type: "button", class: "button", dataset: { needs: "write" }, onclick: () => void this.#rename() }, person.name ? "Rename" : "Name");
        const hide = h("button", { type: "button", class: "button", dataset: { needs: "write" }, onclick: () => void this.#hide() }, person.hidden ? "Show again" : "Hide");
        const photos = h("a", { href: `/photos?person=${person.id}`, class: "button" }, counted(person.photo_count, "photo"));
        const journal = h("a", { href: `/journal?person=${person.id}`, class: "button" }, "Journal");
        fill(this.#head, name, photos, rename, hide, journal);
        document.title = `${nameOf(person)} \u00b7 Kinlens`;
    }

    async #load() {
        const pages = this.#pages;
        if (!pages) return;
        const first = !pages.items.length;
        const found = await pages.more();
        if (pages !== this.#pages) return;
        if (first) {
            this.#held.release();
            fill(this.#faces);
        }
        const before = this.#faces.childElementCount;
        this.#faces.append(...found.map((face, place) => this.#tile(face, before + place + 1)));
        this.#more.hidden = pages.done;
        this.#showChosen();
    }

    /** @param {LibraryFace} face @param {number} number */
    #tile(face, number) {
        const box = h("input", { type: "checkbox", class: "person-box", dataset: { needs: "write" }, "aria-label": `Choose face ${number}` });
        box.addEventListener("change", () => {
            if (box.checked) this.#chosen.add(face.id);
            else this.#chosen.delete(face.id);
            this.#showChosen();
        });
        const picture = this.#held.keep(faceTile(this.app.pictures, face.thumbnail_url ? face.id : null, "", 120));
        const seen = face.photo_id ? h("a", { href: `/photos/${face.photo_id}`, "aria-label": `The photo of this face` }, picture) : picture;
        return h("li", { class: "face" }, seen, box, face.decided_by === "user" ? h("span", { class: "face-said hint" }, "confirmed") : null);
    }

    #showChosen() {
        this.#bar.hidden = !this.#chosen.size;
        this.#count.textContent = this.#chosen.size ? `${counted(this.#chosen.size, "face")} chosen` : "";
        this.#cover.disabled = this.#chosen.size !== 1;
    }

    #clear() {
        this.#chosen.clear();
        for (const box of this.#faces.querySelectorAll("input")) box.checked = false;
        this.#showChosen();
    }

    async #rename() {
        const person = this.#person;
        if (!person) return;
        if (!person.name) {
            let decided = false;
            // Where it became a part of somebody else, that is to be shown and not this any more.
            const decisions = new Decisions(this.app, () => void (decided && this.show(this.#id)));
            const merged = await nameGroup(this.app, decisions, person);
            decided = true;
            if (merged) this.app.router.go(`/people/${merged}`, { replace: true });
            else void this.show(person.id);
            return;
        }
        const name = await asked({ title: "Rename", label: "Name", value: person.name, confirm: "Save" });
        if (name === null || name === person.name) return;
        await this.decisions.make(name ? `The name is ${name} now.` : "The name was taken away.", "PUT", `/persons/${person.id}`, { name });
    }

    async #hide() {
        const person = this.#person;
        if (!person) return;
        const hidden = !person.hidden;
        await this.decisions.make(`${nameOf(person)} is ${hidden ? "hidden" : "shown again"}.`, "PUT", `/persons/${person.id}`, { hidden });
    }

    async #setCover() {
        const [face] = this.#chosen;
        if (face) await this.decisions.make("This face stands for the person now.", "PUT", `/persons/${this.#id}`, { cover_face_id: face });
    }

    async #split() {
        const name = await asked({ title: "Who is it then?", label: "Name, if you know it", confirm: "Make a new person" });
        if (name === null) return;
        const faces = [...this.#chosen];
        await this.decisions.make(`${counted(faces.length, "face")} became somebody else.`, "POST", `/persons/${this.#id}/split`, { face_ids: faces, name });
    }

    async #reject() {
        const calls = [...this.#chosen].map((face) => ({ method: "POST", path: `/faces/${face}/reject-person`, body: { person_id: this.#id } }));
        await this.decisions.makeAll("Not this person, and never again.", calls);
    }

    async #hideFaces() {
        const faces = [...this.#chosen];
        const text = `${counted(faces.length, "face")} will not be grouped or suggested any more.`;
        if (!(await confirmed({ title: "Not a face?", text, confirm: "Hide" }))) return;
        await this.decisions.make(`${counted(faces.length, "face")} hidden.`, "POST", "/faces/hide", { face_ids: faces });
    }
}
