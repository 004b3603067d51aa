/** To a month of the library: a list to choose from, and a slider at the edge that goes where it is drawn to. */

import { h } from "../dom.js";
import { counted, monthName } from "../format.js";

/** @typedef {{month: string, photo_count: number}} Month */

export class Jump {
    /** @type {Month[]} In the order of the wall. */
    #months = [];
    #select = h("select", { id: "jump-month", class: "input" });
    #field = h("div", { class: "field", hidden: true }, h("label", { for: "jump-month" }, "Go to"), this.#select);
    #slider = h("input", { type: "range", class: "scrubber-slider", min: 0, value: 0, step: 1, "aria-label": "Month", "aria-orientation": "vertical" });
    #bubble = h("output", { class: "scrubber-month", "aria-hidden": "true" });
    /** On the way to a month: what passes by is not where the visitor is. */
    going = false;
    /** At the edge of the window. */
    scrubber = h("div", { class: "scrubber", hidden: true }, this.#slider, this.#bubble);

    /** @param {(month: string) => void} go */
    constructor(go) {
        this.go = go;
        this.#select.addEventListener("change", () => this.#select.value && go(this.#select.value));
        this.#slider.addEventListener("input", () => this.#name());
        this.#slider.addEventListener("change", () => {
            const month = this.#months[Number(this.#slider.value)];
            if (month) go(month.month);
        });
        for (const [name, on] of /** @type {[string, boolean][]} */ ([["pointerdown", true], ["pointerup", false], ["pointercancel", false], ["blur", false]])) {
            this.#slider.addEventListener(name, () => this.scrubber.classList.toggle("held", on));
        }
    }

    get element() {
        return this.#field;
    }

    /** @param {Month[]} months  The newest first. @param {boolean} descending  Whether the wall has them so, too. */
    offer(months, descending) {
        this.#months = descending ? months : [...months].reverse();
        /** @type {Map<string, HTMLOptGroupElement>} */
        const years = new Map();
        for (const { month, photo_count: count } of this.#months) {
            const year = month.slice(0, 4);
            const group = years.get(year) ?? h("optgroup", { label: year });
            years.set(year, group);
            group.append(h("option", { value: month }, `${monthName(month)} (${counted(count, "photo")})`));
        }
        this.#select.replaceChildren(h("option", { value: "" }, "A month"), ...years.values());
        this.#slider.max = String(Math.max(0, this.#months.length - 1));
        this.#field.hidden = !this.#months.length;
        this.scrubber.hidden = this.#months.length < 2;
        this.#name();
    }

    /** Where the visitor is now. @param {string} month */
    at(month) {
        if (this.going || this.scrubber.classList.contains("held")) return;
        // Where cameras disagree a month of the wall may have no place of its own.
        const place = this.#months.findIndex((one) => one.month === month);
        if (place < 0 || Number(this.#slider.value) === place) return;
        this.#slider.value = String(place);
        this.#name();
    }

    /** How many photos come before the month. @param {string} month @returns {number} */
    before(month) {
        const place = this.#months.findIndex((one) => one.month === month);
        return this.#months.slice(0, Math.max(0, place)).reduce((sum, one) => sum + one.photo_count, 0);
    }

    #name() {
        const month = this.#months[Number(this.#slider.value)];
        if (!month) return;
        const words = monthName(month.month);
        this.#bubble.textContent = words;
        this.#slider.setAttribute("aria-valuetext", `${words}, ${counted(month.photo_count, "photo")}`);
        const share = this.#months.length > 1 ? Number(this.#slider.value) / (this.#months.length - 1) : 0;
        this.scrubber.style.setProperty("--share", String(share));
    }
}
