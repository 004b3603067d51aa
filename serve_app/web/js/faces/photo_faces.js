/** The faces of a photo of the library: boxes over it, and who they are; here they get their names. */

import { isAbort } from "../api.js";
import { asked } from "../components/dialogs.js";
import { fill, h } from "../dom.js";
import { Decisions } from "../people/decisions.js";
import { faceTile, Held } from "../people/face_tile.js";
import { Overlay } from "./overlay.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {import("../types.js").LibraryFace} LibraryFace */

export class PhotoFaces {
    #list = h("ul", { class: "photo-face-list" });
    #said = h("p", { class: "hint" });
    element = h("section", { class: "photo-faces", "aria-label": "People in this photo" }, h("h3", {}, "People"), this.#said, this.#list);
    #overlay = new Overlay((key) => this.#edit(key));
    #held = new Held();
    /** @type {Photo | null} */
    #photo = null;
    /** @type {LibraryFace[]} */
    #faces = [];
    #abort = new AbortController();

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.decisions = new Decisions(app, () => this.#photo && void this.show(this.#photo));
    }

    get overlay() {
        return this.#overlay.element;
    }

    /** @param {Photo} photo */
    async show(photo) {
        this.#abort.abort();
        this.#abort = new AbortController();
        if (photo.id !== this.#photo?.id) {
            this.#overlay.clear();
            fill(this.#list);
            this.#said.textContent = "";
        }
        this.#photo = photo;
        try {
            const { faces } = await this.app.api.get(`/photos/${photo.id}/faces`, {}, this.#abort.signal);
            this.#faces = faces;
            this.#draw(photo);
        } catch (error) {
            if (!isAbort(error)) this.#said.textContent = error instanceof Error ? error.message : String(error);
        }
    }

    /** @param {Photo} photo */
    #draw(photo) {
        this.#held.release();
        const seen = this.#faces.filter((face) => face.bbox && !face.hidden);
        this.#overlay.show(
            photo.width_px,
            photo.height_px,
            seen.map((face) => ({ key: face.id, bbox: /** @type {number[]} */ (face.bbox), label: face.person_name ?? "", tone: face.person_name ? "" : "unnamed" })),
        );
        this.#said.textContent = this.#faces.length ? "" : "No faces are known in this photo.";
        fill(this.#list, ...this.#faces.map((face, place) => this.#line(face, place + 1)));
    }

    /** @param {LibraryFace} face @param {number} number */
    #line(face, number) {
        const emphasise = () => this.#overlay.emphasise([face.id]);
        const calm = () => this.#overlay.emphasise([]);
        const name = face.person_id ? h("a", { href: `/people/${face.person_id}` }, face.person_name || "Unnamed") : h("span", { class: "hint" }, face.hidden ? "Hidden" : "Nobody");
        const act = (/** @type {string} */ text, /** @type {() => unknown} */ run) => h("button", { type: "button", class: "button small", "aria-label": `${text}: face ${number}`, onclick: () => void run() }, text);
        const actions = face.hidden
            ? [act("Show again", () => this.decisions.make("The face is shown again.", "POST", `/faces/${face.id}/unhide`))]
            : [
                  act(face.person_name ? "Change" : "Name", () => this.#edit(face.id)),
                  face.person_id && act("Not this person", () => this.decisions.make("Not this person, and never again.", "POST", `/faces/${face.id}/reject-person`, {})),
                  act("Not a face", () => this.decisions.make("The face is hidden.", "POST", `/faces/${face.id}/hide`)),
              ];
        return h(
            "li",
            { class: "photo-face", onpointerenter: emphasise, onfocusin: emphasise, onpointerleave: calm, onfocusout: calm },
            this.#held.keep(faceTile(this.app.pictures, face.thumbnail_url ? face.id : null, "", 56)),
            h("div", {}, name, face.unassigned ? h("p", { class: "hint" }, face.unassigned.message) : null, h("div", { class: "photo-face-actions", dataset: { needs: "write" } }, ...actions)),
        );
    }

    /** @param {string} faceId */
    async #edit(faceId) {
        const face = this.#faces.find((one) => one.id === faceId);
        if (!face || !this.app.session.may("write")) return;
        const known = await this.#known();
        const options = [...new Set(known.map((person) => person.name))];
        const name = await asked({ title: "Who is this?", label: "Name", value: face.person_name ?? "", confirm: "Save", options });
        if (!name || name === face.person_name) return;
        const said = `This is ${name}.`;
        if (!face.person_id || face.person_name) {
            await this.decisions.make(said, "POST", `/faces/${faceId}/assign-person`, { name });
            return;
        }
        // A group without a name: all of it gets one, or becomes part of whoever has it.
        const [same, another] = known.filter((person) => person.name === name);
        if (same && !another) await this.decisions.make(said, "POST", `/persons/${same.id}/merge`, { source_person_id: face.person_id });
        else await this.decisions.make(said, "PUT", `/persons/${face.person_id}`, { name });
    }

    /** Who has a name, to choose from. @returns {Promise<import("../types.js").Person[]>} */
    async #known() {
        try {
            return (await this.app.api.get("/persons", { named: true, sort: "name", limit: 500 })).items;
        } catch {
            return [];
        }
    }
}
