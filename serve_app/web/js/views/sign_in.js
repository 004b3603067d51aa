/** Signing in with the API key. */

import { ApiError } from "../api.js";
import { h } from "../dom.js";
import { HOME } from "../router.js";

/** @typedef {import("../types.js").App} App */

export class SignInView {
    title = "Sign in";
    #next = "";

    /** @param {App} app */
    constructor(app) {
        this.app = app;
        this.key = h("input", { id: "key", name: "key", type: "password", class: "input", required: true, autocomplete: "current-password", spellcheck: "false", "aria-describedby": "key-help key-error" });
        this.reveal = h("button", { type: "button", class: "button small", "aria-pressed": "false", onclick: () => this.#reveal(this.key.type === "password") }, "Show");
        this.keep = h("input", { id: "keep", type: "checkbox", checked: true });
        this.error = h("p", { id: "key-error", class: "error-text", role: "alert" });
        this.button = h("button", { class: "button primary" }, "Sign in");
        const form = h(
            "form",
            { class: "card sign-in", onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), void this.#signIn()) },
            h("h1", {}, "Sign in"),
            h("label", { for: "key" }, "API key"),
            h("div", { class: "key-row" }, this.key, this.reveal),
            h("p", { id: "key-help", class: "hint" }, "One that was made for you with ", h("code", {}, "kinlens keys create"), ", or that of the operator: set as ", h("code", {}, "API_KEY"), ", or made at the first start and kept in ", h("code", {}, "api_key"), " in the data folder."),
            this.error,
            h("label", { class: "check" }, this.keep, "Stay signed in until this tab is closed"),
            this.button,
        );
        this.element = h("div", { class: "sign-in-page" }, form);
    }

    /** @param {import("../types.js").Place} place */
    enter({ query }) {
        this.#next = query.get("next") ?? "";
        if (this.app.session.key) {
            this.#leave();
            return;
        }
        queueMicrotask(() => this.key.focus());
    }

    leave() {
        this.key.value = "";
        this.key.removeAttribute("aria-invalid");
        this.#reveal(false);
        this.error.textContent = "";
    }

    /** @param {boolean} shown */
    #reveal(shown) {
        this.key.type = shown ? "text" : "password";
        this.reveal.textContent = shown ? "Hide" : "Show";
        this.reveal.setAttribute("aria-pressed", String(shown));
    }

    async #signIn() {
        const key = this.key.value.trim();
        // A header carries visible ASCII only.
        if (!/^[\x21-\x7e]+$/.test(key)) {
            this.#refuse("That is not an API key: it has letters, digits and signs, and no spaces.");
            return;
        }
        this.button.disabled = true;
        this.error.textContent = "";
        this.app.session.signIn(key, this.keep.checked);
        try {
            this.app.session.know(await this.app.api.get("/me"));
            this.#leave();
        } catch (error) {
            const wrong = error instanceof ApiError && error.status === 401;
            this.app.session.signOut();
            this.#refuse(wrong ? "This key is not good, or no more: it may have been revoked, or have expired." : `Signing in failed. ${error instanceof Error ? error.message : error}`);
        } finally {
            this.button.disabled = false;
        }
    }

    #leave() {
        // Only to a view of ours: another address is none of this page's business.
        const home = ["photos", "compare"].find((view) => this.app.session.sees(view)) ?? HOME;
        this.app.router.go(this.#next.startsWith("/") && !this.#next.startsWith("//") ? this.#next : `/${home}`, { replace: true });
    }

    /** @param {string} why */
    #refuse(why) {
        this.error.textContent = why;
        this.key.setAttribute("aria-invalid", "true");
        this.key.select();
    }
}
