/** The photos of a list as a wall of thumbnails. Only what is near the window is in the page, however many there are. */

import { address } from "../api.js";
import { h } from "../dom.js";
import { dayOf, monthName } from "../format.js";
import { onLongPress } from "./press.js";
import { Timeline } from "./timeline.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {import("./list.js").PhotoList} PhotoList */
/** @typedef {import("./timeline.js").Row} Row */
/** @typedef {import("./timeline.js").Section} Section */
/** @typedef {{item: HTMLLIElement, link: HTMLAnchorElement, release: () => void}} Tile */
/** @typedef {{element: HTMLElement, wall: HTMLElement}} Block */

const HEADING_PX = 52;
const GAP_PX = 4;
const BEYOND = 0.75;
/** Of the window's height: so much above and below it is in the page. */
const AHEAD = 4;
/** Of the window's height: so near the end the next page is asked for. */

export class PhotoGrid {
    element = h("div", { class: "timeline" });
    /** @type {Timeline} */
    #timeline;
    /** @type {Map<number, Tile>} By the place of the photo. */
    #tiles = new Map();
    /** @type {Map<Section, Block>} */
    #blocks = new Map();
    /** The one photo that the Tab key reaches. */
    #focused = 0;
    #width = 0;
    /** Of the row at the top of the window. */
    #month = "";
    #top = 0;
    #frame = 0;
    #watching = false;
    #resized = new ResizeObserver(() => this.#measure());

    /**
     * @param {PhotoList} list
     * @param {import("../pictures.js").Pictures} pictures
     * @param {(photo: Photo) => string} addressOf  Where a photo leads.
     * @param {import("./selection.js").Selection} selection
     */
    constructor(list, pictures, addressOf, selection) {
        this.list = list;
        this.pictures = pictures;
        this.addressOf = addressOf;
        this.selection = selection;
        this.#timeline = this.#newTimeline();
        list.addEventListener("added", (event) => this.#append(/** @type {CustomEvent} */ (event).detail));
        list.addEventListener("removed", () => this.#layOut());
        this.element.addEventListener("keydown", (event) => this.#move(event));
        this.element.addEventListener("focusin", (event) => this.#remember(event));
        this.element.addEventListener("click", (event) => this.#click(event));
        onLongPress(this.element, (target) => selection.allowed() && this.#toggle(this.#indexOf(target)));
    }

    /** It is in the page now. */
    start() {
        this.#watching = true;
        addEventListener("scroll", this.#soon, { passive: true });
        this.selection.addEventListener("change", this.#mark);
        this.#mark();
        this.#resized.observe(this.element);
        this.#measure();
        if (!this.list.photos.length) void this.list.more();
    }

    stop() {
        this.#watching = false;
        removeEventListener("scroll", this.#soon);
        this.selection.removeEventListener("change", this.#mark);
        this.#resized.disconnect();
        cancelAnimationFrame(this.#frame);
        this.#frame = 0;
    }

    /** The pictures are let go of as well. */
    close() {
        this.stop();
        for (const index of [...this.#tiles.keys()]) this.#removeTile(index);
    }

    /** @param {string} id  Of the photo that is to have the focus, and to be seen. */
    focus(id) {
        const index = this.list.indexOf(id);
        if (index >= 0) this.#focus(index);
    }

    /** The photo is the first below the name of its month, and the next that the Tab key reaches. @param {number} index */
    show(index) {
        const row = this.#timeline.rows[this.#timeline.rowOf(index)];
        if (!row) return;
        const bar = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--bar"));
        scrollTo({ top: this.#top + row.top - HEADING_PX - bar });
        this.#render();
        this.#focusable(index);
    }

    #soon = () => {
        if (!this.#frame && this.#watching) this.#frame = requestAnimationFrame(() => this.#render());
    };

    #newTimeline() {
        const narrow = this.#width < 600;
        return new Timeline({ width: this.#width, rowHeight: narrow ? 110 : 190, gap: GAP_PX, heading: HEADING_PX, descending: this.list.descending });
    }

    #measure() {
        const width = Math.floor(this.element.clientWidth);
        this.#top = this.element.getBoundingClientRect().top + scrollY;
        if (width && width !== this.#width) {
            this.#width = width;
            this.#layOut();
        } else {
            this.#soon();
        }
    }

    /** Everything anew: another width, or a photo less. */
    #layOut() {
        for (const index of [...this.#tiles.keys()]) this.#removeTile(index);
        for (const block of this.#blocks.values()) block.element.remove();
        this.#blocks.clear();
        this.#timeline = this.#newTimeline();
        if (this.#width) this.#append(this.list.photos);
    }

    /** @param {Photo[]} photos */
    #append(photos) {
        if (!this.#width) return;
        const last = this.#timeline.rows.at(-1);
        this.#timeline.append(photos);
        // The row that was last may be another one now.
        if (last) for (let index = last.first; index < last.first + last.count; index += 1) this.#removeTile(index);
        this.element.style.setProperty("height", `${this.#timeline.height}px`);
        this.#soon();
    }

    #render() {
        this.#frame = 0;
        const top = scrollY - this.#top;
        const [first] = this.#timeline.rowsBetween(Math.max(0, top + HEADING_PX), this.#timeline.height);
        if (first && first.section.key !== this.#month) this.element.dispatchEvent(new CustomEvent("month", { detail: (this.#month = first.section.key) }));
        const rows = this.#timeline.rowsBetween(top - innerHeight * BEYOND, top + innerHeight * (1 + BEYOND));
        const wanted = new Set(rows);
        // What has the focus stays: a browser would drop it with the element.
        if (this.#tiles.get(this.#focused)?.link === document.activeElement) {
            wanted.add(this.#timeline.rows[this.#timeline.rowOf(this.#focused)]);
        }
        /** @type {Set<number>} */
        const places = new Set();
        /** @type {Set<Section>} */
        const sections = new Set();
        for (const row of wanted) {
            sections.add(row.section);
            for (let index = row.first; index < row.first + row.count; index += 1) places.add(index);
        }
        for (const index of this.#tiles.keys()) if (!places.has(index)) this.#removeTile(index);
        for (const [section, block] of this.#blocks) {
            if (sections.has(section)) continue;
            block.element.remove();
            this.#blocks.delete(section);
        }
        for (const section of sections) this.#place(section);
        for (const row of wanted) this.#fillRow(row);
        if (!this.#tiles.has(this.#focused) && rows.length) this.#focusable(rows[0].first);
        else this.#focusable(this.#focused);
        // What failed is tried again when the visitor says so, not with every frame.
        if (!this.list.error && top + innerHeight * (1 + AHEAD) > this.#timeline.height) void this.list.more();
    }

    /** @param {Section} section */
    #place(section) {
        let block = this.#blocks.get(section);
        if (!block) {
            const id = `month-${section.key}`;
            const wall = h("ul", { class: "wall", "aria-labelledby": id });
            const element = h("section", { class: "month", "aria-labelledby": id }, h("h2", { class: "month-name", id }, monthName(section.key)), wall);
            block = { element, wall };
            this.#blocks.set(section, block);
            // In the order of their dates, for those who read the page from top to bottom.
            const next = [...this.#blocks.keys()].filter((other) => other.top > section.top).sort((a, b) => a.top - b.top)[0];
            this.element.insertBefore(element, next ? /** @type {Block} */ (this.#blocks.get(next)).element : null);
        }
        block.element.style.setProperty("top", `${section.top}px`);
        block.element.style.setProperty("height", `${section.bottom - section.top}px`);
    }

    /** @param {Row} row */
    #fillRow(row) {
        const { wall } = /** @type {Block} */ (this.#blocks.get(row.section));
        for (let place = 0; place < row.count; place += 1) {
            const index = row.first + place;
            if (this.#tiles.has(index)) continue;
            const photo = this.list.photos[index];
            const image = h("img", { alt: "", decoding: "async", draggable: "false" });
            const name = `${photo.file_name}, ${dayOf(photo)}`;
            const link = h("a", { href: this.addressOf(photo), class: "tile", tabindex: "-1", "aria-label": name, dataset: { id: photo.id } }, image);
            const item = h("li", { "aria-setsize": this.list.done ? this.list.photos.length : -1, "aria-posinset": index + 1 }, link);
            const box = { left: row.lefts[place], top: row.top - row.section.top - HEADING_PX, width: row.widths[place], height: row.height };
            for (const [side, value] of Object.entries(box)) item.style.setProperty(side, `${value}px`);
            const pixels = Math.max(box.width, box.height) * devicePixelRatio;
            const release = this.pictures.show(image, address(`/photos/${photo.id}/thumbnail`, { size: pixels > 420 ? 640 : 320 }));
            this.#insert(wall, item, index);
            this.#tiles.set(index, { item, link, release });
            if (this.selection.active) this.#markTile(link);
        }
    }

    /** @param {HTMLElement} wall @param {HTMLLIElement} item @param {number} index */
    #insert(wall, item, index) {
        const last = wall.lastElementChild;
        if (!last || Number(last.getAttribute("aria-posinset")) <= index) {
            wall.append(item);
            return;
        }
        const after = [...wall.children].find((other) => Number(other.getAttribute("aria-posinset")) > index + 1);
        wall.insertBefore(item, after ?? null);
    }

    /** @param {number} index */
    #removeTile(index) {
        const tile = this.#tiles.get(index);
        if (!tile) return;
        tile.release();
        tile.item.remove();
        this.#tiles.delete(index);
    }

    /** @param {number} index */
    #focusable(index) {
        this.#tiles.get(this.#focused)?.link.setAttribute("tabindex", "-1");
        this.#focused = index;
        this.#tiles.get(index)?.link.setAttribute("tabindex", "0");
    }

    /** Which are chosen. Links are links again when nothing is to be chosen. */
    #mark = () => {
        for (const { link } of this.#tiles.values()) this.#markTile(link);
    };

    /** @param {HTMLAnchorElement} link */
    #markTile(link) {
        const chosen = this.selection.has(link.dataset.id ?? "");
        link.classList.toggle("chosen", chosen);
        link.classList.toggle("choosable", this.selection.active);
        if (this.selection.active) {
            link.setAttribute("role", "checkbox");
            link.setAttribute("aria-checked", String(chosen));
        } else {
            link.removeAttribute("role");
            link.removeAttribute("aria-checked");
        }
    }

    /** @param {EventTarget | null} target @returns {number}  -1: no photo. */
    #indexOf(target) {
        const link = target instanceof Element ? target.closest("a") : null;
        for (const [index, tile] of this.#tiles) if (tile.link === link) return index;
        return -1;
    }

    /** @param {number} index */
    #toggle(index) {
        const photo = this.list.photos[index];
        if (photo) this.selection.toggle(photo);
    }

    /** All from the photo that was chosen last up to this one. @param {number} index */
    #chooseTo(index) {
        const from = this.selection.anchor === null ? index : this.list.indexOf(this.selection.anchor);
        if (from < 0) return this.#toggle(index);
        this.selection.add(this.list.photos.slice(Math.min(from, index), Math.max(from, index) + 1));
    }

    /** @param {MouseEvent} event */
    #click(event) {
        const index = this.#indexOf(event.target);
        if (index < 0 || !(this.selection.active || (this.selection.allowed() && (event.ctrlKey || event.metaKey || event.shiftKey)))) return;
        event.preventDefault();
        if (event.shiftKey) this.#chooseTo(index);
        else this.#toggle(index);
    }

    /** @param {FocusEvent} event */
    #remember(event) {
        for (const [index, tile] of this.#tiles) if (tile.link === event.target) this.#focusable(index);
    }

    /** @param {KeyboardEvent} event */
    #move(event) {
        if (event.key === "a" && (event.ctrlKey || event.metaKey) && this.selection.active) {
            event.preventDefault();
            this.selection.add(this.list.photos);
        }
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const at = this.#focused;
        if (event.key === " " && this.selection.allowed() && this.#tiles.get(at)?.link === event.target) {
            event.preventDefault();
            if (event.shiftKey) this.#chooseTo(at);
            else this.#toggle(at);
            return;
        }
        const last = this.#timeline.count - 1;
        /** @type {Record<string, () => number>} */
        const ways = {
            ArrowLeft: () => at - 1,
            ArrowRight: () => at + 1,
            ArrowUp: () => this.#timeline.neighbour(at, -1),
            ArrowDown: () => this.#timeline.neighbour(at, 1),
            Home: () => 0,
            End: () => last,
        };
        const way = ways[event.key];
        if (!way) return;
        event.preventDefault();
        this.#focus(Math.max(0, Math.min(last, way())));
    }

    /** @param {number} index */
    #focus(index) {
        const row = this.#timeline.rows[this.#timeline.rowOf(index)];
        if (!row) return;
        const top = this.#top + row.top;
        const bar = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--bar")) + HEADING_PX;
        if (top < scrollY + bar) scrollTo({ top: top - bar - GAP_PX });
        else if (top + row.height > scrollY + innerHeight) scrollTo({ top: top + row.height - innerHeight + GAP_PX });
        this.#focusable(index);
        this.#render();
        this.#tiles.get(index)?.link.focus({ preventScroll: true });
        this.#focusable(index);
    }
}
