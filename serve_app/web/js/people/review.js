/** Is this the same person? One question after the other, over the whole library, answered by a key or a click. */

import { isAbort } from "../api.js";
import { asked } from "../components/dialogs.js";
import { fill, h, icon } from "../dom.js";
import { decisionWords, pointOf, scale, similarityText } from "../faces/scale.js";
import { counted } from "../format.js";
import { Decisions, nameOf } from "./decisions.js";
import { faceTile, Held } from "./face_tile.js";
import { named, nameGroup } from "./naming.js";
import { Questions, subjectOf } from "./questions.js";

/** @typedef {import("./questions.js").Question} Question */
/** @typedef {import("./decisions.js").Call} Call */

const MORE_FACES = 5;
const MOST_HIDDEN = 1000;
/** Faces that one decision takes. */

export class Review {
    /** @type {Questions | null} */
    #questions = null;
    /** @type {Question | null} */
    #question = null;
    #held = new Held();
    #busy = false;
    #answered = 0;
    /** @type {import("../types.js").Point | null} */
    #point = null;
    #abort = new AbortController();
    #said = h("p", { class: "said" });
    /** For those who listen: the question, and that there is none. */
    #heard = h("p", { class: "visually-hidden", role: "status" });
    #asked = h("h2", { class: "review-question" });
    #left = h("div", { class: "review-side" });
    #right = h("div", { class: "review-side" });
    #scale = h("div", { class: "review-scale" });
    #buttons;
    #card;
    /** @type {Record<string, HTMLButtonElement>} */
    #answers;

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.decisions = new Decisions(app, () => {});
        const answer = (/** @type {string} */ key, /** @type {string} */ text, /** @type {string} */ kind, /** @type {() => Promise<void>} */ run) =>
            h("button", { type: "button", class: `button ${kind}`, "aria-keyshortcuts": key, onclick: () => void run() }, text, h("kbd", {}, key));
        this.#answers = {
            y: answer("y", "Yes", "primary", () => this.#yes()),
            n: answer("n", "No", "", () => this.#no()),
            x: answer("x", "Not a face", "", () => this.#notAFace()),
            o: answer("o", "Somebody else\u2026", "", () => this.#other()),
            s: answer("s", "Skip", "", () => this.#next()),
        };
        this.#buttons = h("div", { class: "review-answers", dataset: { needs: "write" }, role: "group", "aria-label": "Answers" }, ...Object.values(this.#answers));
        this.#card = h("section", { class: "review card", hidden: true, "aria-label": "Question" }, this.#asked, h("div", { class: "review-sides" }, this.#left, this.#right), this.#scale, this.#buttons);
        this.element = h(
            "div",
            {},
            h("p", {}, h("a", { href: "/people" }, "\u2190 People")),
            h("div", { class: "view-head" }, h("h1", {}, "Is this the same person?"), h("a", { href: "/journal", class: "button" }, icon("journal"), "Journal")),
            this.#said,
            this.#heard,
            this.#card,
        );
    }

    start() {
        this.stop();
        this.#abort = new AbortController();
        this.#questions = new Questions(this.app.api);
        this.#answered = 0;
        addEventListener("keydown", this.#key);
        void this.#next();
    }

    stop() {
        removeEventListener("keydown", this.#key);
        this.#abort.abort();
        this.#questions?.stop();
        this.#questions = null;
        this.#held.release();
        this.#card.hidden = true;
    }

    #key = (/** @type {KeyboardEvent} */ event) => {
        const typing = event.target instanceof HTMLInputElement || document.querySelector("dialog[open]");
        if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
        const button = this.#answers[event.key.toLowerCase()];
        if (!button || button.disabled || button.hidden || this.#card.hidden || !this.app.session.may("write")) return;
        event.preventDefault();
        button.click();
    };

    async #next() {
        const questions = this.#questions;
        if (!questions || this.#busy) return;
        this.#busy = true;
        if (!questions.waiting) this.#said.textContent = "Looking for questions";
        try {
            this.#point ??= pointOf((await this.app.api.get("/models", {}, this.#abort.signal)).loaded);
            const question = await questions.next();
            if (questions !== this.#questions) return;
            this.#question = question;
            this.#show();
        } catch (error) {
            if (!isAbort(error)) this.#said.textContent = error instanceof Error ? error.message : String(error);
        } finally {
            this.#busy = false;
        }
    }

    #show() {
        this.#held.release();
        const question = this.#question;
        this.#card.hidden = !question;
        const done = this.#answered ? `${counted(this.#answered, "question")} answered.` : "";
        if (!question) {
            this.#said.textContent = `${done} There is nothing to ask${this.#answered ? " any more" : ""}.`.trim();
            this.#heard.textContent = this.#said.textContent;
            return;
        }
        const { group, face, person, similarity, decision } = question;
        const name = person.name || "the same person";
        this.#asked.textContent = group ? `Are these ${name}?` : `Is this ${name}?`;
        this.#said.textContent = done;
        this.#heard.textContent = `${this.#asked.textContent} Similarity ${similarityText(similarity)}: ${decisionWords(decision)}.`;
        fill(this.#scale, this.#point ? scale(similarity, this.#point) : null);
        this.#answers.x.hidden = !!group && group.face_count > MOST_HIDDEN;
        if (group) {
            this.#side(this.#left, group.cover_face_id, h("a", { href: `/people/${group.id}` }, "Unnamed"), counted(group.face_count, "face"), group.id, group.face_count);
        } else if (face) {
            const photo = face.photo_id ? h("a", { href: `/photos/${face.photo_id}` }, "A face of this photo") : h("span", {}, "A face");
            this.#side(this.#left, face.id, photo, face.unassigned?.message ?? "Nobody has it", null, 0);
        }
        this.#side(this.#right, question.face_id, h("a", { href: `/people/${person.id}` }, nameOf(person)), counted(person.face_count, "face"), person.id, person.face_count);
    }

    /**
     * @param {HTMLElement} side @param {string | null} faceId @param {HTMLElement} title @param {string} hint
     * @param {string | null} personId  Whose other faces are shown. @param {number} count
     */
    #side(side, faceId, title, hint, personId, count) {
        const more = h("div", { class: "review-more" });
        fill(side, this.#held.keep(faceTile(this.app.pictures, faceId, "", 260)), h("p", { class: "review-name" }, title), h("p", { class: "hint" }, hint), more);
        if (personId && count > 1) void this.#others(more, personId, faceId);
    }

    /** @param {HTMLElement} place @param {string} personId @param {string | null} shown */
    async #others(place, personId, shown) {
        try {
            const { items } = await this.app.api.get(`/persons/${personId}/faces`, { limit: MORE_FACES + 1 }, this.#abort.signal);
            if (!place.isConnected) return;
            const faces = items.filter((/** @type {any} */ one) => one.id !== shown && one.thumbnail_url).slice(0, MORE_FACES);
            fill(place, ...faces.map((/** @type {any} */ one) => this.#held.keep(faceTile(this.app.pictures, one.id, "", 64))));
        } catch {
            // They only help.
        }
    }

    /** @param {string} said @param {Call} call */
    async #decide(said, call) {
        const question = this.#question;
        if (!question || this.#busy) return false;
        this.#busy = true;
        const undone = () => this.#back(question);
        const [done] = await this.decisions.makeAll(said, [call], undone);
        this.#busy = false;
        if (done) this.#answered += 1;
        return !!done;
    }

    /** @param {Question} question  That is to be answered anew. */
    #back(question) {
        if (!this.#questions) return;
        this.#answered = Math.max(0, this.#answered - 1);
        if (this.#question) this.#questions.again(this.#question);
        this.#question = question;
        this.#show();
    }

    async #yes() {
        const question = this.#question;
        if (!question) return;
        const { group, face, person } = question;
        const said = group ? `They are ${person.name || "one person"} now.` : `This is ${person.name || "the same person"}.`;
        const call = group
            ? { method: "POST", path: `/persons/${person.id}/merge`, body: { source_person_id: group.id } }
            : { method: "POST", path: `/faces/${face?.id}/assign-person`, body: { person_id: person.id } };
        if (!(await this.#decide(said, call))) return;
        if (group) this.#questions?.forget(group.id);
        await this.#next();
    }

    async #no() {
        const question = this.#question;
        if (!question) return;
        const { group, face, person } = question;
        const call = group
            ? { method: "POST", path: `/persons/${group.id}/not-same`, body: { person_id: person.id } }
            : { method: "POST", path: `/faces/${face?.id}/reject-person`, body: { person_id: person.id } };
        if (await this.#decide(`Not ${person.name || "the same person"}, and not asked again.`, call)) await this.#next();
    }

    async #notAFace() {
        const question = this.#question;
        if (!question) return;
        const { group, face } = question;
        const faces = group ? await this.#facesOf(group.id) : [/** @type {{id: string}} */ (face).id];
        if (!faces.length) return;
        const said = faces.length > 1 ? `${counted(faces.length, "face")} are hidden.` : "The face is hidden.";
        if (!(await this.#decide(said, { method: "POST", path: "/faces/hide", body: { face_ids: faces } }))) return;
        if (group) this.#questions?.forget(group.id);
        await this.#next();
    }

    /** @param {string} personId @returns {Promise<string[]>}  None where it failed, which has been said. */
    async #facesOf(personId) {
        try {
            const { items } = await this.app.api.get(`/persons/${personId}/faces`, { limit: MOST_HIDDEN }, this.#abort.signal);
            return items.map((/** @type {{id: string}} */ face) => face.id);
        } catch (error) {
            this.app.toasts.fail(error, "Nothing was changed.");
            return [];
        }
    }

    /** Neither yes nor no: who it is. */
    async #other() {
        const question = this.#question;
        if (!question) return;
        const before = subjectOf(question);
        const decisions = new Decisions(this.app, () => {
            this.#questions?.forget(before);
            if (this.#question === question) void this.#next();
        });
        if (question.group) await nameGroup(this.app, decisions, question.group);
        else if (question.face) await nameFace(this.app, decisions, question.face.id);
    }
}

/** @param {import("../types.js").App} app @param {Decisions} decisions @param {string} faceId */
async function nameFace(app, decisions, faceId) {
    const options = [...new Set((await named(app)).map((person) => person.name))];
    const name = await asked({ title: "Who is this?", label: "Name", confirm: "Save", options });
    if (name) await decisions.make(`This is ${name}.`, "POST", `/faces/${faceId}/assign-person`, { name });
}
