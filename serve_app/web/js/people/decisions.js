/** What the visitor decides about faces and persons. Each decision is said, and can be taken back where it is said. */

/** @typedef {import("../types.js").App} App */
/** @typedef {{journal_id: string | null}} Decided */
/** @typedef {{method: string, path: string, body?: unknown}} Call */

export class Decisions {
    /** @param {App} app @param {() => void} changed  Called after each decision, and after it was taken back. */
    constructor(app, changed) {
        this.app = app;
        this.changed = changed;
    }

    /**
     * @param {string} said  What was done, for the visitor.
     * @param {string} method @param {string} path @param {unknown} [body]
     * @returns {Promise<any>}  The answer; null where it failed, which has been said.
     */
    async make(said, method, path, body) {
        const [answer] = await this.makeAll(said, [{ method, path, body }]);
        return answer ?? null;
    }

    /**
     * Several that are one for the visitor: said once, and taken back together.
     * @param {string} said @param {Call[]} calls @param {() => void} [undone]  Called when they were taken back.
     * @returns {Promise<any[]>}  The answers up to the first that failed, which has been said.
     */
    async makeAll(said, calls, undone) {
        /** @type {any[]} */
        const answers = [];
        /** @type {unknown} */
        let failure = null;
        for (const { method, path, body } of calls) {
            try {
                answers.push(await this.app.api.send(method, path, body));
            } catch (error) {
                failure = error;
                break;
            }
        }
        const entries = answers.flatMap((/** @type {Decided} */ answer) => answer.journal_id ?? []);
        if (failure) this.app.toasts.fail(failure, answers.length ? `Only ${answers.length} of ${calls.length} were changed.` : "Nothing was changed.");
        if (!answers.length) return answers;
        this.changed();
        if (entries.length) this.app.toasts.say(said, { label: "Undo", run: () => this.undo(entries, undone) });
        else this.app.toasts.say("It was so already.");
        return answers;
    }

    /** @param {string[]} entries  Of the journal, as they were made; the last is taken back first. @param {() => void} [undone] */
    async undo(entries, undone) {
        let kept = 0;
        /** @type {string[]} */
        const undoings = [];
        try {
            for (const entry of [...entries].reverse()) {
                const answer = await this.app.api.send("POST", `/journal/${entry}/undo`);
                kept += answer.kept_count;
                undoings.push(answer.journal_id);
            }
            const said = kept ? "Undone, but for what was changed again since." : "Undone.";
            this.app.toasts.say(said, { label: "Redo", run: () => this.#redo(undoings) });
            undone?.();
        } catch (error) {
            this.app.toasts.fail(error, "It was not undone.");
        }
        this.changed();
    }

    /** @param {string[]} undoings */
    async #redo(undoings) {
        try {
            for (const entry of [...undoings].reverse()) await this.app.api.send("POST", `/journal/${entry}/undo`);
            this.app.toasts.say("Done again.");
        } catch (error) {
            this.app.toasts.fail(error, "It was not done again.");
        }
        this.changed();
    }
}

/** @param {{name: string}} person @returns {string} */
export function nameOf(person) {
    return person.name || "Unnamed";
}
