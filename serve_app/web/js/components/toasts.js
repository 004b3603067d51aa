/** Short messages at the edge of the page, read out by screen readers; some offer to undo. */

import { isAbort } from "../api.js";
import { h, icon } from "../dom.js";

const SHOWN_MS = 6000;
const SHOWN_WITH_ACTION_MS = 12_000;
const MOST = 4;

export class Toasts {
    #polite = h("div", { class: "toasts", role: "status", "aria-live": "polite" });
    #urgent = h("div", { class: "toasts toasts-urgent", role: "alert" });
    #area = h("div", { class: "toast-area" }, this.#polite, this.#urgent);

    constructor() {
        this.#place();
        // Dialogs come and go as children of the body.
        new MutationObserver(() => this.#place()).observe(document.body, { childList: true });
    }

    /** Inside the dialog that is open: what is outside of it can neither be clicked nor heard. */
    #place() {
        const host = [...document.querySelectorAll("body > dialog[open]")].at(-1) ?? document.body;
        if (this.#area.parentElement !== host) host.append(this.#area);
    }

    /**
     * @param {string} text
     * @param {{label: string, run: () => void | Promise<void>}} [action]
     */
    say(text, action) {
        this.#add(this.#polite, text, action);
    }

    /** @param {unknown} error  What failed, and why. @param {string} [what] */
    fail(error, what) {
        if (isAbort(error)) return;
        const why = error instanceof Error ? error.message : String(error);
        this.#add(this.#urgent, what ? `${what} ${why}` : why);
    }

    /**
     * @param {HTMLElement} list
     * @param {string} text
     * @param {{label: string, run: () => void | Promise<void>}} [action]
     */
    #add(list, text, action) {
        const toast = h("div", { class: "toast" }, h("p", {}, text));
        const remove = () => toast.remove();
        let timer = setTimeout(remove, action ? SHOWN_WITH_ACTION_MS : SHOWN_MS);
        // Whoever reads it, or reaches for its button, is given time.
        for (const name of ["pointerenter", "focusin"]) toast.addEventListener(name, () => clearTimeout(timer));
        for (const name of ["pointerleave", "focusout"]) {
            toast.addEventListener(name, () => {
                clearTimeout(timer);
                timer = setTimeout(remove, SHOWN_MS);
            });
        }
        if (action) {
            const button = h("button", { type: "button", class: "toast-action", onclick: () => (remove(), action.run()) }, action.label);
            toast.append(button);
        }
        toast.append(h("button", { type: "button", class: "icon-button", "aria-label": "Dismiss", onclick: remove }, icon("close")));
        list.append(toast);
        while (list.childElementCount > MOST) list.firstElementChild?.remove();
        this.#place();
    }
}
