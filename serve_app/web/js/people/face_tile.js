/** A face as a square picture. */

import { address } from "../api.js";
import { h } from "../dom.js";

/**
 * @param {import("../pictures.js").Pictures} pictures
 * @param {string | null} faceId  null: nobody knows what it looks like.
 * @param {string} alt
 * @param {number} [side]  Pixels on the screen.
 * @returns {[HTMLElement, () => void]}  The picture, and what lets go of it.
 */
export function faceTile(pictures, faceId, alt, side = 160) {
    if (!faceId) return [h("span", { class: "face-none", role: "img", "aria-label": alt || "No picture" }), () => {}];
    const image = h("img", { class: "face-picture", alt, draggable: "false", decoding: "async" });
    const release = pictures.show(image, address(`/faces/${faceId}/thumbnail`, { size: Math.round(side * Math.min(2, devicePixelRatio)) }));
    return [image, release];
}

/** Pictures of one list; all are let go of together. */
export class Held {
    /** @type {(() => void)[]} */
    #held = [];

    /** @param {[HTMLElement, () => void]} tile @returns {HTMLElement} */
    keep([element, release]) {
        this.#held.push(release);
        return element;
    }

    release() {
        for (const one of this.#held.splice(0)) one();
    }
}
