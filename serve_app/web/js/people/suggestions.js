/** Is this the same person? Others who look like one, to be answered with yes or no. */

import { isAbort } from "../api.js";
import { fill, h } from "../dom.js";
import { decisionWords, similarityText } from "../faces/scale.js";
import { nameOf } from "./decisions.js";
import { faceTile, Held } from "./face_tile.js";

/** @typedef {import("../types.js").Person} Person */
/** @typedef {{similarity: number, decision: import("../faces/scale.js").Decision}} Likeness */

export class Suggestions {
    element = h("section", { class: "suggestions", hidden: true, "aria-label": "Is this the same person?" });
    #held = new Held();

    /** @param {import("../types.js").App} app @param {import("./decisions.js").Decisions} decisions */
    constructor(app, decisions) {
        this.app = app;
        this.decisions = decisions;
    }

    /** @param {Person} person */
    async show(person) {
        let found;
        try {
            found = await this.app.api.get(`/persons/${person.id}/suggestions`, { limit: 6 });
        } catch (error) {
            if (!isAbort(error)) this.element.hidden = true;
            return;
        }
        this.#held.release();
        const name = nameOf(person);
        const likely = (/** @type {Likeness} */ one) => one.decision !== "unknown";
        const persons = found.persons.filter(likely).map((/** @type {any} */ one) => this.#question(one, one.face_id, nameOf(one.person), one.person.id, [
            ["Same", `They are one person now: ${name}.`, `/persons/${person.id}/merge`, { source_person_id: one.person.id }],
            ["Not the same", "They stay two persons.", `/persons/${person.id}/not-same`, { person_id: one.person.id }],
        ]));
        const faces = found.faces.filter(likely).map((/** @type {any} */ one) => this.#question(one, one.face.id, "A face", null, [
            ["Same", `This is ${name}.`, `/faces/${one.face.id}/assign-person`, { person_id: person.id }],
            ["Not the same", `This is not ${name}.`, `/faces/${one.face.id}/reject-person`, { person_id: person.id }],
            ["Not a face", "It will not be grouped any more.", `/faces/${one.face.id}/hide`, undefined],
        ]));
        const all = [...persons, ...faces];
        this.element.hidden = !all.length;
        fill(this.element, h("h2", {}, `Is this ${person.name || "the same person"} as well?`), h("ul", { class: "questions" }, ...all));
    }

    /** @param {Likeness} likeness @param {string} faceId @param {string} title @param {string | null} personId @param {[string, string, string, unknown][]} answers */
    #question({ similarity, decision }, faceId, title, personId, answers) {
        const buttons = answers.map(([text, said, path, body]) =>
            h("button", { type: "button", class: "button small", onclick: () => void this.decisions.make(said, "POST", path, body) }, text),
        );
        return h(
            "li",
            { class: "question" },
            this.#held.keep(faceTile(this.app.pictures, faceId, "", 96)),
            h("div", {}, personId ? h("a", { href: `/people/${personId}` }, title) : h("span", {}, title), h("p", { class: "hint" }, `${decisionWords(decision)}: ${similarityText(similarity)}`), h("div", { class: "question-answers", dataset: { needs: "write" } }, ...buttons)),
        );
    }
}
