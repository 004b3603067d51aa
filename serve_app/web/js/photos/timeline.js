/**
 * Where each photo stands: rows of full width, in sections of a month. Pure arithmetic; what is not seen costs nothing but this.
 *
 * Photos come in the order of their date. Where the clocks of two cameras disagree about the month at its border, the section
 * that has begun stays, so that no month appears twice.
 */

import { monthOf } from "../format.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {{top: number, height: number, first: number, count: number, lefts: number[], widths: number[], section: Section}} Row */
/** @typedef {{key: string, top: number, bottom: number, first: number, rows: Row[]}} Section */
/** @typedef {{width: number, rowHeight: number, gap: number, heading: number, descending: boolean}} Measures */

const NARROWEST = 0.5;
const WIDEST = 3;

export class Timeline {
    /** @type {Section[]} */
    sections = [];
    /** @type {Row[]} */
    rows = [];
    /** @type {number[]} */
    #aspects = [];
    /** @type {Measures} */
    #measures;

    /** @param {Measures} measures */
    constructor(measures) {
        this.#measures = measures;
    }

    get count() {
        return this.#aspects.length;
    }

    get height() {
        return this.sections.at(-1)?.bottom ?? 0;
    }

    /** @param {Photo[]} photos  That come after those it has. */
    append(photos) {
        // The last row may not have been full.
        const last = this.rows.pop();
        last?.section.rows.pop();
        let first = last ? last.first : 0;
        let section = last ? last.section : null;
        for (const photo of photos) {
            const key = monthOf(photo);
            const index = this.#aspects.push(aspectOf(photo)) - 1;
            if (section && !this.#follows(section.key, key)) continue;
            if (section) this.#fillRows(section, first, index);
            section = this.#newSection(key, index);
            first = index;
        }
        if (section) this.#fillRows(section, first, this.count);
    }

    /** @param {string} begun @param {string} key  Whether a new section begins. */
    #follows(begun, key) {
        return this.#measures.descending ? key < begun : key > begun;
    }

    /** @param {string} key @param {number} first @returns {Section} */
    #newSection(key, first) {
        const top = this.height;
        const section = { key, top, bottom: top + this.#measures.heading, first, rows: [] };
        this.sections.push(section);
        return section;
    }

    /** @param {Section} section @param {number} first @param {number} end */
    #fillRows(section, first, end) {
        const { width, rowHeight, gap, heading } = this.#measures;
        let top = section.rows.length ? this.#below(section) : section.top + heading;
        let start = first;
        let sum = 0;
        for (let index = first; index < end; index += 1) {
            sum += this.#aspects[index];
            const spaces = gap * (index - start);
            if (sum * rowHeight + spaces < width && index < end - 1) continue;
            const full = sum * rowHeight + spaces >= width;
            const height = full ? (width - spaces) / sum : rowHeight;
            this.#addRow(section, top, height, start, index + 1, full);
            top += Math.round(height) + gap;
            start = index + 1;
            sum = 0;
        }
        section.bottom = Math.max(top, section.top + heading);
    }

    /** @param {Section} section @returns {number} */
    #below(section) {
        const row = /** @type {Row} */ (section.rows.at(-1));
        return row.top + row.height + this.#measures.gap;
    }

    /** @param {Section} section @param {number} top @param {number} height @param {number} first @param {number} end @param {boolean} full */
    #addRow(section, top, height, first, end, full) {
        const { width, gap } = this.#measures;
        const lefts = [];
        const widths = [];
        let left = 0;
        for (let index = first; index < end; index += 1) {
            const natural = Math.round(this.#aspects[index] * height);
            // The last one takes what rounding has left.
            const wide = full && index === end - 1 ? width - left : Math.min(natural, width - left);
            lefts.push(left);
            widths.push(Math.max(1, wide));
            left += wide + gap;
        }
        /** @type {Row} */
        const row = { top, height: Math.round(height), first, count: end - first, lefts, widths, section };
        section.rows.push(row);
        this.rows.push(row);
    }

    /** The rows that touch what lies between two heights. @param {number} top @param {number} bottom @returns {Row[]} */
    rowsBetween(top, bottom) {
        const first = firstWhere(this.rows.length, (place) => this.rows[place].top + this.rows[place].height >= top);
        const end = firstWhere(this.rows.length, (place) => this.rows[place].top > bottom);
        return this.rows.slice(first, end);
    }

    /** @param {number} index  Of a photo. @returns {number}  Of its row. */
    rowOf(index) {
        return firstWhere(this.rows.length, (place) => this.rows[place].first + this.rows[place].count > index);
    }

    /** The photo above (-1) or below (+1), by its middle. @param {number} index @param {number} step @returns {number} */
    neighbour(index, step) {
        const from = this.rows[this.rowOf(index)];
        const to = this.rows[this.rowOf(index) + step];
        if (!from || !to) return index;
        const middle = from.lefts[index - from.first] + from.widths[index - from.first] / 2;
        const distances = to.lefts.map((left, place) => Math.abs(left + to.widths[place] / 2 - middle));
        return to.first + distances.indexOf(Math.min(...distances));
    }
}

/** @param {Photo} photo @returns {number} */
function aspectOf(photo) {
    return Math.min(WIDEST, Math.max(NARROWEST, photo.width_px / photo.height_px || 1));
}

/** The first place for which it holds, of places that first do not and then do. @param {number} count @param {(place: number) => boolean} holds */
function firstWhere(count, holds) {
    let low = 0;
    let high = count;
    while (low < high) {
        const middle = (low + high) >> 1;
        if (holds(middle)) high = middle;
        else low = middle + 1;
    }
    return low;
}
