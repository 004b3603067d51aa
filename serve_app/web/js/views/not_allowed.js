/** A view that the key is not good for. */

import { h } from "../dom.js";

export class NotAllowedView {
    /** @param {import("../types.js").App} app @param {string} title */
    constructor(app, title) {
        this.title = title;
        const me = app.session.me;
        const why = me && !me.library && me.scopes.includes("read") ? "It is limited to other collections." : `Its scopes: ${me?.scopes.join(", ") || "none"}.`;
        this.element = h(
            "div",
            { class: "view" },
            h("div", { class: "view-head" }, h("h1", {}, title)),
            h("p", { class: "said empty" }, `The key \u201c${me?.name ?? ""}\u201d is not good for this. ${why} Sign in with another one, or ask whoever gave it to you.`),
        );
    }

    enter() {}

    leave() {}
}
