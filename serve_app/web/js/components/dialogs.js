/** Modal questions. The browser's own dialog keeps the focus inside and gives it back. */

import { h } from "../dom.js";

/**
 * @param {{title: string, text: string, confirm: string, danger?: boolean}} question
 * @returns {Promise<boolean>}
 */
export function confirmed({ title, text, confirm, danger = false }) {
    return new Promise((resolve) => {
        const dialog = h(
            "dialog",
            { class: "dialog", "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text", onclose: close },
            h("h2", { id: "dialog-title" }, title),
            h("p", { id: "dialog-text" }, text),
            h(
                "form",
                { method: "dialog", class: "dialog-buttons" },
                h("button", { class: "button", value: "no", autofocus: true }, "Cancel"),
                h("button", { class: danger ? "button danger" : "button primary", value: "yes" }, confirm),
            ),
        );
        function close() {
            dialog.remove();
            resolve(dialog.returnValue === "yes");
        }
        document.body.append(dialog);
        dialog.showModal();
    });
}

/**
 * A question that is answered with a line of text; null where it was cancelled.
 * @param {{title: string, label: string, value?: string, confirm: string, maxlength?: number, options?: string[]}} question
 * @returns {Promise<string | null>}
 */
export function asked({ title, label, value = "", confirm, maxlength = 200, options = [] }) {
    return new Promise((resolve) => {
        const input = h("input", { id: "dialog-input", class: "input", value, maxlength, autofocus: true, autocomplete: "off", list: "dialog-options" });
        const dialog = h(
            "dialog",
            { class: "dialog", "aria-labelledby": "dialog-title", onclose: close },
            h("h2", { id: "dialog-title" }, title),
            h(
                "form",
                { method: "dialog" },
                h("label", { for: "dialog-input" }, label),
                input,
                h("datalist", { id: "dialog-options" }, ...options.map((option) => h("option", { value: option }))),
                h(
                    "div",
                    { class: "dialog-buttons" },
                    h("button", { class: "button", value: "no", type: "button", onclick: () => dialog.close("no") }, "Cancel"),
                    h("button", { class: "button primary", value: "yes" }, confirm),
                ),
            ),
        );
        function close() {
            dialog.remove();
            resolve(dialog.returnValue === "yes" ? input.value.trim() : null);
        }
        document.body.append(dialog);
        dialog.showModal();
        input.select();
    });
}
