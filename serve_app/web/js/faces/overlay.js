/** Boxes around faces, drawn over a picture in its own pixels. What they say stands in a list beside it as well. */

import { fill, svg } from "../dom.js";

/**
 * @typedef {{key: string, bbox: number[], landmarks?: number[][] | null, label: string, tone?: string}} Box
 *   bbox: x1, y1, x2, y2 in pixels of the picture as displayed. `tone`: a class.
 */

export class Overlay {
    element = svg("svg", { class: "overlay", "aria-hidden": "true", preserveAspectRatio: "none" });
    /** @type {Map<string, SVGGElement>} */
    #groups = new Map();

    /** @param {(key: string) => void} [chosen]  A box was clicked. */
    constructor(chosen) {
        this.chosen = chosen;
    }

    /** @param {number} width @param {number} height @param {Box[]} boxes */
    show(width, height, boxes) {
        this.element.setAttribute("viewBox", `0 0 ${width} ${height}`);
        this.#groups.clear();
        // Relative to the picture: the same on a phone's as on a camera's.
        const unit = Math.max(width, height) / 100;
        const drawn = boxes.map((box) => {
            const group = this.#group(box, unit, width);
            this.#groups.set(box.key, group);
            return group;
        });
        fill(this.element, ...drawn);
    }

    clear() {
        this.#groups.clear();
        fill(this.element);
    }

    /** @param {string[]} keys  Of the boxes to be seen best; none: all alike. */
    emphasise(keys) {
        this.element.classList.toggle("some", keys.length > 0);
        for (const [key, group] of this.#groups) group.classList.toggle("chosen", keys.includes(key));
    }

    /** @param {Box} box @param {number} unit @param {number} width */
    #group({ key, bbox, landmarks, label, tone }, unit, width) {
        const [x1, y1, x2, y2] = bbox;
        const size = Math.max(unit * 1.6, Math.min(unit * 2.4, (x2 - x1) / 3));
        const above = y1 > size * 1.5;
        const long = label.length * size * 0.62 + size * 0.6;
        const left = Math.max(0, Math.min(x1, width - long));
        const top = above ? y1 - size * 1.45 : y2 + size * 0.1;
        const group = svg(
            "g",
            { class: `box ${tone ?? ""}`, onclick: () => this.chosen?.(key) },
            svg("rect", { class: "box-edge", x: x1, y: y1, width: x2 - x1, height: y2 - y1, rx: unit * 0.5 }),
            ...(landmarks ?? []).map(([x, y]) => svg("circle", { class: "box-point", cx: x, cy: y, r: Math.max(unit * 0.3, (x2 - x1) / 28) })),
        );
        if (label) {
            group.append(
                svg("rect", { class: "box-plate", x: left, y: top, width: long, height: size * 1.35, rx: size * 0.25 }),
                svg("text", { class: "box-label", x: left + size * 0.3, y: top + size, "font-size": size, textLength: label.length > 2 ? long - size * 0.6 : null }, label),
            );
        }
        return group;
    }
}
