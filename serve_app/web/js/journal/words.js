/** Entries of the journal as sentences. Persons are linked while they are there; who is gone keeps the name it had. */

import { h } from "../dom.js";
import { counted } from "../format.js";

/** @typedef {import("../types.js").JournalEntry} JournalEntry */
/** @typedef {(string | HTMLElement)[]} Sentence */

const MOST_NAMED = 4;
const GONE = "somebody who is gone";

/** @type {Record<string, string>} What the filter calls them. */
export const ACTIONS = {
    assign_faces: "Faces given to somebody",
    reject_face: "Not this person",
    unassign_faces: "Faces taken from somebody",
    hide_faces: "Faces hidden",
    unhide_faces: "Faces shown again",
    rename_person: "Names",
    merge_persons: "Persons made one",
    split_person: "Persons taken apart",
    distinguish_persons: "Not the same person",
    hide_person: "Persons hidden",
    unhide_person: "Persons shown again",
    change_person: "Covers and other changes",
    create_person: "Persons made",
    delete_person: "Persons dissolved",
    undo: "Undone and redone",
};

/** @param {JournalEntry} entry @param {Map<string, string>} names  Of persons who are there. @returns {Sentence} */
export function sentenceOf(entry, names) {
    const [first, ...rest] = wordsOf(entry, names);
    return first === GONE ? [GONE[0].toUpperCase() + GONE.slice(1), ...rest] : [first, ...rest];
}

/** @param {JournalEntry} entry @param {Map<string, string>} names @returns {Sentence} */
function wordsOf(entry, names) {
    const { action, face_count: count } = entry;
    const faces = count === 1 ? "a face" : counted(count, "face");
    const all = people(entry.person_ids, entry, names);
    const [changed] = entry.persons;
    const gone = entry.persons.filter(({ after }) => after === null).map(({ person_id }) => person_id);
    const made = entry.persons.filter(({ before }) => before === null).map(({ person_id }) => person_id);
    const rest = entry.person_ids.filter((id) => !gone.includes(id) && !made.includes(id));
    switch (action) {
        case "rename_person":
            return renamed(changed?.before?.name ?? "", changed?.after?.name ?? "", all);
        case "merge_persons":
            return gone.length ? [...people(gone, entry, names), " became part of ", ...people(rest, entry, names)] : ["Made one of ", ...all];
        case "split_person":
            return [`Took ${faces} from `, ...people(rest, entry, names), " for ", ...people(made, entry, names)];
        case "distinguish_persons":
            return ["Not the same person: ", ...all];
        case "assign_faces":
            return [`Said whose ${count === 1 ? "face this is" : `${faces} are`}: `, ...all];
        case "unassign_faces":
            return [`Took ${faces} from `, ...all];
        case "reject_face":
            return ["Said who a face is not: ", ...all];
        case "hide_faces":
            return [`Hid ${faces}`, ...(all.length ? [" of ", ...all] : [])];
        case "unhide_faces":
            return [`Showed ${faces} again`];
        case "hide_person":
            return ["Hid ", ...all];
        case "unhide_person":
            return ["Showed again: ", ...all];
        case "create_person":
            return ["Made ", ...all];
        case "delete_person":
            return ["Dissolved ", ...all];
        case "undo":
            return ["Took back what was done", ...(all.length ? [" to ", ...all] : count ? [` to ${faces}`] : [])];
        default:
            return ["Changed ", ...all];
    }
}

/** @param {string} before @param {string} after @param {Sentence} who @returns {Sentence} */
function renamed(before, after, who) {
    if (!after) return [`Took the name ${before} from `, ...who];
    return before ? [`Renamed ${before} to ${after}: `, ...who] : [`Named ${after}: `, ...who];
}

/** @param {string[]} ids @param {JournalEntry} entry @param {Map<string, string>} names @returns {Sentence} */
function people(ids, entry, names) {
    const shown = ids.slice(0, MOST_NAMED).map((id) => one(id, entry, names));
    const more = ids.length - shown.length;
    return [...shown.flatMap((name, place) => (place ? [", ", name] : [name])), ...(more ? [` and ${counted(more, "other")}`] : [])];
}

/** @param {string} id @param {JournalEntry} entry @param {Map<string, string>} names @returns {string | HTMLElement} */
function one(id, entry, names) {
    const now = names.get(id);
    if (now !== undefined) return h("a", { href: `/people/${id}` }, now || "Unnamed");
    const change = entry.persons.find(({ person_id }) => person_id === id);
    return change?.before?.name || change?.after?.name || GONE;
}
