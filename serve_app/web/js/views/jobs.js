/** What runs in the background. */

import { isAbort, pause, PREFIX } from "../api.js";
import { fill, h } from "../dom.js";
import { isOpen, JobCard } from "../jobs/card.js";
import { events } from "../jobs/events.js";

/** @typedef {import("../types.js").Job} Job */

const EVERY_MS = 4000;
const LIMIT = 50;
const KINDS = [
    ["faces", "Find faces", "The search for faces has begun."],
    ["faces-cluster", "Group faces anew", "The faces are grouped anew."],
    ["embeddings", "Read what photos show", "The photos are being read."],
];

export class JobsView {
    title = "Jobs";
    /** @type {Map<string, JobCard>} */
    #cards = new Map();
    #list = h("ul", { class: "jobs" });
    #said = h("p", { class: "said", role: "status" });
    #abort = new AbortController();
    /** One stream at a time: a browser has six connections to a server, and pictures want some. */
    #watched = "";

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        const starts = KINDS.map(([kind, text, said]) => h("button", { type: "button", class: "button", dataset: { needs: "write" }, onclick: () => void this.#start(kind, said) }, text));
        this.element = h("div", { class: "view" }, h("div", { class: "view-head" }, h("h1", {}, "Jobs"), ...starts), this.#said, this.#list);
    }

    enter() {
        this.#abort.abort();
        this.#abort = new AbortController();
        void this.#poll(this.#abort.signal);
    }

    leave() {
        this.#abort.abort();
        this.#watched = "";
    }

    /** @param {AbortSignal} signal */
    async #poll(signal) {
        while (!signal.aborted) {
            if (!document.hidden) await this.#load(signal);
            await pause(EVERY_MS, signal).catch(() => {});
        }
    }

    /** @param {AbortSignal} signal */
    async #load(signal) {
        try {
            const { items } = await this.app.api.get("/jobs", { limit: LIMIT }, signal);
            this.#show(items);
        } catch (error) {
            if (!isAbort(error)) this.#said.textContent = error instanceof Error ? error.message : String(error);
        }
    }

    /** @param {Job[]} jobs */
    #show(jobs) {
        const known = new Map(jobs.map((job) => [job.job_id, job]));
        for (const [id, card] of this.#cards) {
            if (known.has(id)) continue;
            card.element.remove();
            this.#cards.delete(id);
        }
        for (const job of jobs) {
            const card = this.#cards.get(job.job_id);
            if (card) card.show(job);
            else this.#cards.set(job.job_id, new JobCard(this.app, job, () => void this.#load(this.#abort.signal)));
        }
        const wanted = jobs.map((job) => /** @type {JobCard} */ (this.#cards.get(job.job_id)).element);
        // Only where the order has changed: what has the focus keeps it.
        if (wanted.some((element, place) => this.#list.children[place] !== element)) fill(this.#list, ...wanted);
        const open = jobs.filter(isOpen);
        this.#said.textContent = jobs.length ? `${open.length ? `${open.length} running` : "Nothing is running"}.` : "Nothing has run yet.";
        this.#said.classList.toggle("empty", !jobs.length);
        if (open[0] && !this.#watched) void this.#watch(open[0].job_id, this.#abort.signal);
    }

    /** @param {string} id @param {AbortSignal} signal */
    async #watch(id, signal) {
        this.#watched = id;
        try {
            for await (const { event, data } of events(this.app.api, `${PREFIX}/jobs/${id}/events`, signal)) {
                this.#cards.get(id)?.show(data);
                if (event === "end") break;
            }
        } catch {
            // The list is asked for again in any case.
        } finally {
            if (this.#watched === id) this.#watched = "";
        }
        if (!signal.aborted) await this.#load(signal);
    }

    /** @param {string} kind @param {string} said */
    async #start(kind, said) {
        try {
            /** @type {Job} */
            const job = await this.app.api.send("POST", `/index/${kind}`, {});
            this.app.toasts.say(job.progress.total ? said : "There is nothing to do: every photo has been looked at.");
            await this.#load(this.#abort.signal);
        } catch (error) {
            this.app.toasts.fail(error);
        }
    }
}
