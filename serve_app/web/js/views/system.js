/** Is everything up, how fast is it, what is stored, what is loaded, under which licence? */

import { ApiError, isAbort } from "../api.js";
import { fill, h } from "../dom.js";
import { pointOf, worth } from "../faces/scale.js";
import { counted, duration, milliseconds, number, size } from "../format.js";
import { latencyPlot } from "../system/latency.js";
import { stageBars } from "../system/stages.js";

const EVERY_MS = 5000;
/** @type {Record<string, string>} */
const WORK = {
    Ingress: "answers requests",
    Detection: "decodes, finds faces",
    Embedding: "tells faces apart",
    Analysis: "age, gender and the like",
    Semantic: "what photos show",
    Indexing: "works off jobs",
};

export class SystemView {
    title = "System";
    #parts = h("dl", { class: "facts status-list" });
    #replicas = h("section", { class: "card", hidden: true });
    #requests = h("section", { class: "card", hidden: true });
    #stored = h("section", { class: "card", hidden: true });
    #models = h("div", { class: "system-models" });
    #timer = 0;
    #tableOpen = false;

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.element = h(
            "div",
            { class: "view" },
            h("div", { class: "view-head" }, h("h1", {}, "System")),
            h("div", { class: "system" }, h("section", { class: "card" }, h("h2", {}, "Parts"), this.#parts), this.#stored, this.#requests, this.#replicas),
            this.#models,
        );
    }

    enter() {
        void this.#loadModels();
        void this.#watch();
        this.#timer = setInterval(() => void this.#watch(), EVERY_MS);
    }

    leave() {
        clearInterval(this.#timer);
    }

    async #watch() {
        if (document.hidden) return;
        await Promise.all([this.#watchParts(), this.app.session.sees("system") ? this.#watchAll() : null]);
    }

    async #watchParts() {
        /** @type {[string, string, boolean][]} */
        const found = [];
        try {
            const health = await this.app.api.get("/health");
            found.push(["Service", `up for ${duration(health.uptime_s)}, version ${health.version}`, true]);
        } catch (error) {
            found.push(["Service", error instanceof ApiError ? error.message : "does not answer", false]);
        }
        const parts = await this.app.api.get("/health/parts").catch(() => ({}));
        const named = { Database: parts.database, "Object store": parts.object_store, Detection: parts.models?.detection, Embedding: parts.models?.embedding };
        for (const [name, state] of Object.entries(named)) found.push([name, state ?? "not known", state === "ok"]);
        const waiting = Object.entries(parts.queue?.kinds ?? {}).filter(([, count]) => count).map(([kind, count]) => `${number(count)} ${kind}`);
        if (parts.queue) found.push(["Jobs", waiting.length ? `waiting: ${waiting.join(", ")}` : "nothing waits", true]);
        fill(this.#parts, ...found.map(([name, value, good]) => fact(name, h("span", { class: good ? "good" : "bad" }, value === "ok" ? "answers" : value))));
    }

    async #watchAll() {
        try {
            const found = await this.app.api.get("/system");
            this.#showReplicas(found);
            this.#showRequests(found.requests);
            this.#showStored(found);
        } catch (error) {
            // The parts say what is wrong.
            if (!isAbort(error)) for (const section of [this.#replicas, this.#requests, this.#stored]) section.hidden = true;
        }
    }

    /** @param {any} found */
    #showReplicas({ deployments }) {
        this.#replicas.hidden = !deployments;
        if (!deployments) return;
        const head = ["Deployment", "Replicas", "State", "Calls under way or waiting"].map((name) => h("th", { scope: "col" }, name));
        const rows = deployments.map((/** @type {any} */ one) => {
            const full = one.replicas >= one.target && one.status === "healthy";
            const moving = [one.starting ? `${one.starting} starting` : "", one.stopping ? `${one.stopping} stopping` : ""].filter(Boolean).join(", ");
            return h(
                "tr",
                {},
                h("th", { scope: "row" }, one.name, h("span", { class: "hint block" }, WORK[one.name] ?? "")),
                h("td", {}, `${one.replicas} of ${one.target}`),
                h("td", {}, h("span", { class: full ? "good" : "warn" }, [one.status, moving].filter(Boolean).join(", "))),
                // Nobody calls these two through a handle.
                h("td", {}, one.name === "Ingress" || one.name === "Indexing" ? "\u2013" : number(one.calls)),
            );
        });
        fill(this.#replicas, h("h2", {}, "Replicas"), h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Replicas of each deployment" }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows))));
    }

    /** @param {any} requests */
    #showRequests(requests) {
        const { lately, replicas_answered: answered, replicas_silent: silent } = requests;
        const told = this.#requests.querySelector("details");
        if (told) this.#tableOpen = told.open;
        // Whoever reads in the table goes on reading.
        if (told?.contains(document.activeElement) && this.#tableOpen) return;
        this.#requests.hidden = false;
        const figures = lately.requests
            ? [
                  [counted(lately.requests, "request"), `in the last ${Math.round(lately.seconds / 60)} minutes`],
                  [milliseconds(lately.p50_ms), "half of the answers began within"],
                  [milliseconds(lately.p95_ms), "95 of 100 within"],
                  [number(lately.failed), "failed"],
                  [number(lately.refused), "refused for lack of room, or by a limit"],
              ]
            : [];
        const from = `Of ${counted(answered, "ingress replica")}${silent ? `; ${counted(silent, "replica")} did not answer, so numbers are missing` : ""}.`;
        fill(
            this.#requests,
            h("h2", {}, "Requests"),
            figures.length ? h("dl", { class: "figures" }, ...figures.map(([value, name]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))) : h("p", {}, "Nobody has asked for anything in the last five minutes."),
            h("div", { class: "request-details" }, latencyPlot(requests, Date.now() / 1000), stageBars(lately.stages_ms)),
            h("p", { class: silent ? "warn" : "hint" }, from),
        );
        const details = this.#requests.querySelector("details");
        if (details) details.open = this.#tableOpen;
    }

    /** @param {any} found */
    #showStored({ stored, database, object_store: objects }) {
        this.#stored.hidden = false;
        const about = stored?.estimated ? "about " : "";
        const facts = stored
            ? [
                  fact("Photos", `${about}${number(stored.photos)}`),
                  fact("Faces", `${about}${number(stored.faces)}, of ${counted(stored.persons, "person", "persons")}`),
                  fact("Original pictures", `${about}${number(stored.pictures)}, ${size(stored.picture_bytes)}`),
                  fact("Database", `${size(stored.database_bytes)}; ${counted(database.connections_used, "connection")} in use, ${number(database.connections_idle)} idle`),
              ]
            : [fact("Database", "does not say")];
        const { disk, kind } = objects;
        const place = kind === "minio" ? "MinIO or another S3 server" : "a folder of this machine";
        facts.push(fact("Pictures lie in", place));
        if (disk) facts.push(fact("Free on its disk", `${size(disk.free_bytes)} of ${size(disk.total_bytes)}`));
        fill(this.#stored, h("h2", {}, "Stored"), h("dl", { class: "facts" }, ...facts));
    }

    async #loadModels() {
        try {
            const { loaded, available_packs: packs, semantic } = await this.app.api.get("/models");
            fill(this.#models, this.#loaded(loaded, packs, semantic), this.#attributes(loaded));
        } catch (error) {
            if (isAbort(error)) return;
            fill(this.#models, h("p", { class: "error-text", role: "alert" }, error instanceof Error ? error.message : String(error)));
        }
    }

    /** @param {any} loaded @param {string[]} packs @param {any} semantic */
    #loaded(loaded, packs, semantic) {
        const facts = [
            ["Pack", `${loaded.title} (${loaded.pack})`],
            ["Licence", `${loaded.licence}; commercial use ${allowed(loaded.commercial_use)}`],
            ["Embedding", `${loaded.embedding_model}, ${number(loaded.dim)} numbers a face`],
            ["Device", loaded.device],
            ["Detector", `${loaded.detector.family}, ${loaded.detector.file}`],
            ["Recognizer", `${loaded.recognizer.family}, ${loaded.recognizer.file}`],
            ["Other packs", packs.filter((pack) => pack !== loaded.pack).join(", ") || "none"],
            ["What photos show", semantic.loaded ? `${semantic.loaded.title}; ${semantic.loaded.licence}; commercial use ${allowed(semantic.loaded.commercial_use)}` : "no image-text model is loaded"],
        ];
        const rows = facts.map(([name, value]) => fact(name, value));
        return h("section", { class: "card" }, h("h2", {}, "Model"), h("dl", { class: "facts" }, ...rows), h("p", { class: "hint" }, worth(pointOf(loaded))));
    }

    /** @param {any} loaded */
    #attributes(loaded) {
        const rows = Object.entries(loaded.attributes).map(([attribute, model]) =>
            h("tr", {}, h("th", { scope: "row" }, attribute), h("td", {}, model.title || model.name), h("td", {}, model.licence), h("td", {}, allowed(model.commercial_use))),
        );
        const head = ["Attribute", "Model", "Licence", "Commercial use"].map((name) => h("th", { scope: "col" }, name));
        const lost = loaded.unavailable.map((/** @type {any} */ { attribute, reason }) => h("li", {}, `${attribute}: ${reason}`));
        return h(
            "section",
            { class: "card" },
            h("h2", {}, "Attributes"),
            rows.length ? h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Models of attributes" }, h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows))) : null,
            lost.length ? h("ul", { class: "hint" }, ...lost) : null,
        );
    }
}

/** @param {string} name @param {string | HTMLElement} value */
function fact(name, value) {
    return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

/** @param {boolean | null} commercial @returns {string} */
function allowed(commercial) {
    return commercial === null ? "not known" : commercial ? "allowed" : "not allowed";
}
