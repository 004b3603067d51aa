/** What stands around every view: the bar with the way to the others, and the place for the view itself. */

import { fill, h, icon } from "./dom.js";
import { isDark, toggleTheme } from "./theme.js";

/** @typedef {{name: string, title: string}} Entry */

export class Shell {
    /** @type {Map<string, HTMLAnchorElement>} */
    #links = new Map();
    #main = h("main", { id: "main", class: "main" });
    #nav;
    #signOut;

    /** @param {Entry[]} entries @param {() => void} signOut */
    constructor(entries, signOut) {
        for (const { name, title } of entries) {
            const link = h("a", { href: `/${name}`, class: "nav-link" }, icon(name), h("span", {}, title));
            this.#links.set(name, link);
        }
        this.#nav = h("nav", { class: "nav", "aria-label": "Views" }, ...this.#links.values());
        this.#signOut = h("button", { type: "button", class: "icon-button", "aria-label": "Sign out", title: "Sign out", onclick: signOut }, icon("leave"));
        const theme = h("button", { type: "button", class: "icon-button", title: "Light or dark" }, icon("theme"));
        const named = () => theme.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
        theme.addEventListener("click", () => (toggleTheme(), named()));
        named();
        const skip = h("a", { href: "#main", class: "skip" }, "Skip to the content");
        skip.addEventListener("click", (event) => (event.preventDefault(), this.#focusHeading()));
        const brand = h("a", { href: "/photos", class: "brand", "aria-label": "Kinlens, to the photos" }, icon("faces"), h("span", {}, "Kinlens"));
        const bar = h("header", { class: "bar" }, brand, this.#nav, h("div", { class: "bar-end" }, theme, this.#signOut));
        this.element = h("div", { class: "shell" }, skip, bar, this.#main);
    }

    /** @param {import("./types.js").View} view @param {string} name @param {boolean} isNew @param {import("./session.js").Session} session */
    show(view, name, isNew, session) {
        const signedIn = session.key !== null;
        document.title = `${view.title} \u00b7 Kinlens`;
        this.#nav.hidden = !signedIn;
        this.#signOut.hidden = !signedIn;
        this.offer(session);
        for (const [one, link] of this.#links) {
            if (one === name) link.setAttribute("aria-current", "page");
            else link.removeAttribute("aria-current");
        }
        if (!isNew) return;
        const first = !this.#main.childElementCount;
        fill(this.#main, view.element);
        // Whoever listens is told where they are; at the start the browser says it.
        if (!first) queueMicrotask(() => this.#focusHeading());
    }

    /** The views that the key is good for. @param {import("./session.js").Session} session */
    offer(session) {
        this.#signOut.title = session.me ? `Sign out (key ${session.me.name})` : "Sign out";
        for (const [one, link] of this.#links) link.hidden = !session.sees(one);
    }

    #focusHeading() {
        const heading = this.#main.querySelector("h1");
        heading?.setAttribute("tabindex", "-1");
        heading?.focus({ preventScroll: true });
    }
}
