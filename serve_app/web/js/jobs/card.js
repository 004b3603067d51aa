/** One job: how far it is, how fast, what failed and why. */

import { fill, h } from "../dom.js";
import { counted, duration, moment, number } from "../format.js";

/** @typedef {import("../types.js").Job} Job */

const KINDS = { faces: "Finding faces", embeddings: "Reading what photos show", "faces-cluster": "Grouping faces", scan: "Reading a folder" };
const STATES = { queued: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled" };
const MOST_FAILURES = 50;

/** @param {Job} job @returns {boolean} */
export function isOpen(job) {
    return job.state === "queued" || job.state === "running";
}

export class JobCard {
    #state = h("span", { class: "job-state" });
    #bar = h("progress", { max: 1, value: 0 });
    #figures = h("p", { class: "hint" });
    #delayed = h("p", { class: "job-delayed" });
    #failures = h("ul", { class: "job-failures" });
    #open = h("details", {}, h("summary", {}, "Failures"), this.#failures);
    #cancel;
    #retry;

    /** @param {import("../types.js").App} app @param {Job} job @param {() => void} changed */
    constructor(app, job, changed) {
        this.app = app;
        this.job = job;
        this.changed = changed;
        const title = KINDS[/** @type {keyof typeof KINDS} */ (job.kind)] ?? job.kind;
        this.#bar.setAttribute("aria-label", `${title}: progress`);
        this.#cancel = h("button", { type: "button", class: "button small", dataset: { needs: "write" }, onclick: () => void this.#post("cancel") }, "Cancel");
        this.#retry = h("button", { type: "button", class: "button small", dataset: { needs: "write" }, onclick: () => void this.#post("retry-failed") }, "Retry failed");
        this.element = h(
            "li",
            { class: "card job" },
            h("header", { class: "job-head" }, h("h2", {}, title), this.#state, this.#retry, this.#cancel),
            this.#bar,
            this.#figures,
            this.#delayed,
            this.#open,
        );
        this.#open.addEventListener("toggle", () => this.#open.open && void this.#loadFailures());
        this.show(job);
    }

    /** @param {Job} job */
    show(job) {
        const { progress } = job;
        this.job = job;
        this.element.dataset.state = job.state;
        const half = job.state === "done" && progress.failed > 0;
        this.#state.textContent = half ? "Done, not all of it" : STATES[job.state];
        this.#state.classList.toggle("warn", half);
        this.#bar.max = Math.max(1, progress.total);
        this.#bar.value = progress.total - progress.remaining;
        this.#bar.hidden = !isOpen(job);
        this.#figures.textContent = figures(job);
        this.#delayed.textContent = job.delayed ? `Waiting: ${job.delayed.detail}` : "";
        this.#delayed.hidden = !job.delayed;
        this.#cancel.hidden = !isOpen(job);
        this.#retry.hidden = !progress.failed;
        this.#open.hidden = !progress.failed;
    }

    async #loadFailures() {
        try {
            const { items } = await this.app.api.get(`/jobs/${this.job.job_id}/items`, { state: "failed", limit: MOST_FAILURES });
            const photos = this.job.kind === "faces" || this.job.kind === "embeddings";
            fill(
                this.#failures,
                ...items.map((/** @type {any} */ { subject, error }) =>
                    h("li", {}, photos && subject ? h("a", { href: `/photos/${subject}` }, "Photo") : subject || "All of it", `: ${error?.detail ?? "no reason given"}`),
                ),
            );
        } catch (error) {
            this.app.toasts.fail(error);
        }
    }

    /** @param {string} what */
    async #post(what) {
        try {
            this.show(await this.app.api.send("POST", `/jobs/${this.job.job_id}/${what}`));
            this.changed();
        } catch (error) {
            this.app.toasts.fail(error);
        }
    }
}

/** @param {Job} job @returns {string} */
function figures({ progress, automatic, created_at: created, finished_at: finished }) {
    const { total, done, failed, skipped, cancelled, remaining, rate_per_s: rate, eta_s: eta } = progress;
    return [
        `${number(done)} of ${counted(total, "item")} done`,
        failed ? `${number(failed)} failed` : "",
        skipped ? `${number(skipped)} skipped` : "",
        cancelled ? `${number(cancelled)} cancelled` : "",
        remaining && rate ? `${rate < 1 ? `${(rate * 60).toFixed(1)} a minute` : `${rate.toFixed(1)} a second`}` : "",
        remaining && eta !== null ? `about ${duration(eta)} to go` : "",
        finished ? `ended ${moment(finished)}` : `begun ${moment(created)}`,
        automatic ? "started by uploads" : "",
    ]
        .filter(Boolean)
        .join(", ");
}
