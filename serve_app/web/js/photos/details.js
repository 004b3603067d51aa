/** What is known of a photo, beside it. */

import { fill, h } from "../dom.js";
import { dayOf, moment, number, size, takenOf } from "../format.js";
import { TagEditor } from "./tags.js";

/** @typedef {import("../types.js").Photo} Photo */

export class Details {
    #facts = h("dl", { class: "facts" });
    #name = h("h2", { class: "details-name" });
    #tags;
    /** For what others say of the photo: the faces in it. */
    more = h("div", {});

    /** @param {import("../types.js").App} app @param {(photo: Photo) => void} changed */
    constructor(app, changed) {
        this.#tags = new TagEditor(app, changed);
        this.element = h("aside", { class: "details", "aria-label": "Details" }, this.#name, this.#facts, h("h3", {}, "Tags"), this.#tags.element, this.more);
    }

    /** @param {Photo} photo */
    show(photo) {
        this.#name.textContent = photo.file_name;
        this.#tags.show(photo);
        const given = photo.taken_at !== photo.created_at ? `${dayOf(photo)}, as the upload said` : "The picture does not say";
        /** @type {[string, string | HTMLElement | null][]} */
        const facts = [
            ["Taken", takenOf(photo) || given],
            ["Size", `${number(photo.width_px)} \u00d7 ${number(photo.height_px)} pixels, ${size(photo.size_bytes)}, ${photo.format}`],
            ["Camera", photo.camera],
            ["Lens", photo.lens],
            ["Place", placeOf(photo)],
            ["Folder", photo.folder ? h("a", { href: `/photos?folder=${encodeURIComponent(photo.folder)}` }, photo.folder) : null],
            ["Added", moment(photo.created_at)],
        ];
        const known = facts.filter(([, value]) => value);
        fill(this.#facts, ...known.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    }
}

/** Not a map: that would tell somebody else where the photo was taken. @param {Photo} photo @returns {string | null} */
function placeOf(photo) {
    const { latitude, longitude, altitude_m: altitude } = photo;
    if (latitude === null || longitude === null) return null;
    const north = `${Math.abs(latitude).toFixed(5)}\u00b0 ${latitude < 0 ? "S" : "N"}`;
    const east = `${Math.abs(longitude).toFixed(5)}\u00b0 ${longitude < 0 ? "W" : "E"}`;
    return `${north}, ${east}${altitude === null ? "" : `, ${Math.round(altitude)} m`}`;
}
