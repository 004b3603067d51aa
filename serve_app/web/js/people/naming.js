/** Who is this group? One of those it looks like, somebody known by name, or a new name. */

import { h } from "../dom.js";
import { decisionWords, similarityText } from "../faces/scale.js";
import { nameOf } from "./decisions.js";
import { faceTile, Held } from "./face_tile.js";

/** @typedef {import("../types.js").App} App */
/** @typedef {import("../types.js").Person} Person */

const SUGGESTED = 4;

/**
 * @param {App} app @param {import("./decisions.js").Decisions} decisions @param {Person} group  Without a name.
 * @returns {Promise<string | null>}  The id of who it became a part of; null where it stayed itself.
 */
export async function nameGroup(app, decisions, group) {
    const [known, suggested] = await Promise.all([named(app), suggestions(app, group)]);
    const answer = await ask(app, known, suggested);
    if (!answer) return null;
    if (typeof answer === "string") {
        const [same, another] = known.filter((person) => person.name === answer && person.id !== group.id);
        // Two of one name: nobody knows which is meant. It is a third, until the visitor says otherwise.
        if (same && !another) return merged(decisions, same, group);
        await decisions.make(`This is ${answer}.`, "PUT", `/persons/${group.id}`, { name: answer });
        return null;
    }
    return merged(decisions, answer, group);
}

/** @param {import("./decisions.js").Decisions} decisions @param {Person} person @param {Person} group */
async function merged(decisions, person, group) {
    const done = await decisions.make(`This is ${nameOf(person)}.`, "POST", `/persons/${person.id}/merge`, { source_person_id: group.id });
    return done && person.id;
}

/** Who has a name, to choose from. @param {App} app @returns {Promise<Person[]>} */
export async function named(app) {
    try {
        return (await app.api.get("/persons", { named: true, sort: "name", limit: 500 })).items;
    } catch {
        return [];
    }
}

/** @param {App} app @param {Person} group @returns {Promise<any[]>} */
async function suggestions(app, group) {
    try {
        const { persons } = await app.api.get(`/persons/${group.id}/suggestions`, { limit: 3 * SUGGESTED });
        return persons.filter((/** @type {any} */ one) => one.person.name && one.decision !== "unknown").slice(0, SUGGESTED);
    } catch {
        return [];
    }
}

/**
 * @param {App} app @param {Person[]} known @param {any[]} suggested
 * @returns {Promise<Person | string | null>}  A person, or a name; null where it was cancelled.
 */
function ask(app, known, suggested) {
    return new Promise((resolve) => {
        /** @type {Person | null} */
        let chosen = null;
        const held = new Held();
        const input = h("input", { id: "naming-name", class: "input", maxlength: 200, autocomplete: "off", list: "naming-known", autofocus: true });
        const tiles = suggested.map((one) => {
            const choose = () => ((chosen = one.person), dialog.close("yes"));
            const words = `${decisionWords(one.decision)}: ${similarityText(one.similarity)}`;
            const picture = held.keep(faceTile(app.pictures, one.face_id, "", 96));
            return h("li", {}, h("button", { type: "button", class: "naming-choice", onclick: choose }, picture, h("span", { class: "person-name" }, nameOf(one.person)), h("span", { class: "hint" }, words)));
        });
        const dialog = h(
            "dialog",
            { class: "dialog", "aria-labelledby": "naming-title", onclose: close },
            h("h2", { id: "naming-title" }, "Who is this?"),
            tiles.length ? h("ul", { class: "naming-choices", "aria-label": "Most alike" }, ...tiles) : null,
            h(
                "form",
                { method: "dialog" },
                h("label", { for: "naming-name" }, tiles.length ? "Or a name" : "Name"),
                input,
                h("datalist", { id: "naming-known" }, ...[...new Set(known.map((person) => person.name))].map((name) => h("option", { value: name }))),
                h(
                    "div",
                    { class: "dialog-buttons" },
                    h("button", { class: "button", type: "button", onclick: () => dialog.close("no") }, "Cancel"),
                    h("button", { class: "button primary", value: "yes" }, "Save"),
                ),
            ),
        );
        function close() {
            held.release();
            dialog.remove();
            resolve(dialog.returnValue === "yes" ? (chosen ?? (input.value.trim() || null)) : null);
        }
        document.body.append(dialog);
        dialog.showModal();
    });
}
