/**
 * Elements made without markup. Text is always a text node: a name or a tag that looks like HTML is shown as it is written.
 *
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, any>} Props  `onclick` and the like: listeners; `style`, `dataset`: objects; else attributes.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Props} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props = {}, ...children) {
    return filled(document.createElement(tag), props, children);
}

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Props} [props]
 * @param {...(Child | Child[])} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function svg(tag, props = {}, ...children) {
    return filled(/** @type {SVGElementTagNameMap[K]} */ (document.createElementNS(SVG, tag)), props, children);
}

/**
 * @template {HTMLElement | SVGElement} E
 * @param {E} element
 * @param {Props} props
 * @param {(Child | Child[])[]} children
 * @returns {E}
 */
function filled(element, props, children) {
    for (const [name, value] of Object.entries(props)) {
        if (value === null || value === undefined || value === false) continue;
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (name === "dataset") Object.assign(element.dataset, value);
        else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
        else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...nodes(children));
    return element;
}

/** @param {(Child | Child[])[]} children @returns {(Node | string)[]} */
function nodes(children) {
    return children
        .flat()
        .filter((child) => child !== null && child !== undefined && child !== false)
        .map((child) => (child instanceof Node ? child : String(child)));
}

/** @param {Element} element @param {...(Child | Child[])} children */
export function fill(element, ...children) {
    element.replaceChildren(...nodes(children));
}

/** @type {Record<string, string>} Paths on a grid of 24 x 24, drawn as lines. */
const ICONS = {
    photos: "M4 6h16v13H4zM4 16l4.500-4.500 4 4 3-3L20 17M9 9.500h.01",
    people: "M9 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM2.500 20c0-3.600 2.900-6 6.500-6s6.500 2.400 6.500 6M16 4.500a3.200 3.200 0 0 1 0 6M17.500 14.300c2.400.7 4 2.800 4 5.700",
    search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM16.200 16.200 21 21",
    review: "M8.500 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM2.500 19c0-3.300 2.600-5.500 6-5.500 1 0 2 .2 2.800.6M15.500 9.500a2.500 2.500 0 1 1 3.500 2.300c-.7.300-1 .8-1 1.700M18 17.500h.01",
    journal: "M5 4h11l3 3v13H5zM8.500 9h7M8.500 13h7M8.500 17h4",
    undo: "M9 7 4 12l5 5M4 12h10a6 6 0 0 1 6 6v1",
    redo: "m15 7 5 5-5 5M20 12H10a6 6 0 0 0-6 6v1",
    yes: "m5 12.500 5 5L19.500 7",
    select: "M4 4h16v16H4zM8 12l3 3 5.500-6",
    tag: "M4 4h8l8 8-8 8-8-8zM8 8h.01",
    compare: "M3 5h7v14H3zM14 5h7v14h-7z",
    analyze: "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M9 10h.01M15 10h.01M8.500 14.500c2 2 5 2 7 0",
    jobs: "M4 6h10M4 12h16M4 18h7",
    system: "M4 5h16v6H4zM4 13h16v6H4zM7.500 8h.01M7.500 16h.01",
    theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
    leave: "M14 4H5v16h9M10 12h11M17.500 8.500 21 12l-3.500 3.500",
    close: "M5 5l14 14M19 5 5 19",
    previous: "M15 4 7 12l8 8",
    next: "m9 4 8 8-8 8",
    info: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 11v6M12 7.500h.01",
    faces: "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M12 12.500a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM7.500 17.500c.5-2 2.200-3 4.500-3s4 1 4.500 3",
    zoom: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM16.200 16.200 21 21M8 11h6M11 8v6",
    download: "M12 4v11M7 11l5 5 5-5M4 20h16",
    erase: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.500 11v5M13.500 11v5",
    upload: "M12 16V5M7 9l5-5 5 5M4 20h16",
};

/** @param {string} name @returns {SVGElement} */
export function icon(name) {
    const line = svg("path", { d: ICONS[name] ?? "", fill: "none" });
    return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" }, line);
}
