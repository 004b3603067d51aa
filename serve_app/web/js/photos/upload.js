/** Files on their way into the library: a few at once, each a request of its own, so that each has its own progress and result. */

import { newKey, PREFIX } from "../api.js";

/** @typedef {import("../types.js").Photo} Photo */
/** @typedef {"waiting" | "sending" | "created" | "exists" | "unsupported" | "failed" | "cancelled"} Status */
/** @typedef {{file: File, folder: string, status: Status, share: number, why: string, photo: Photo | null}} Sending */

const AT_ONCE = 3;
const TRIES = 5;
const LONGEST_WAIT_S = 30;

/** Tells of `change` (the sending) and `end` when nothing is left to do. */
export class Uploads extends EventTarget {
    /** @type {Sending[]} */
    all = [];
    #running = 0;
    /** @type {Set<XMLHttpRequest>} */
    #requests = new Set();
    /** @type {Sending[]} */
    #queue = [];

    /** @param {import("../session.js").Session} session */
    constructor(session) {
        super();
        this.session = session;
        addEventListener("beforeunload", (event) => this.busy && event.preventDefault());
    }

    get busy() {
        return this.#running > 0 || this.#queue.length > 0;
    }

    /** @param {{file: File, folder: string}[]} files */
    add(files) {
        for (const { file, folder } of files) {
            /** @type {Sending} */
            const sending = { file, folder, status: "waiting", share: 0, why: "", photo: null };
            this.all.push(sending);
            this.#queue.push(sending);
            this.#tell(sending);
        }
        this.#pump();
    }

    /** What failed once more. */
    retry() {
        for (const sending of this.all) {
            if (sending.status !== "failed" && sending.status !== "cancelled") continue;
            Object.assign(sending, { status: "waiting", share: 0, why: "" });
            this.#queue.push(sending);
            this.#tell(sending);
        }
        this.#pump();
    }

    cancel() {
        for (const sending of this.#queue.splice(0)) this.#end(sending, "cancelled", "Not sent.");
        for (const request of this.#requests) request.abort();
    }

    /** What is finished is taken off the list. */
    clear() {
        this.all = this.all.filter((one) => one.status === "waiting" || one.status === "sending");
    }

    #pump() {
        while (this.#running < AT_ONCE) {
            const sending = this.#queue.shift();
            if (!sending) return;
            this.#running += 1;
            void this.#run(sending).finally(() => {
                this.#running -= 1;
                this.#pump();
                if (!this.busy) this.dispatchEvent(new Event("end"));
            });
        }
    }

    /** @param {Sending} sending */
    async #run(sending) {
        const key = newKey();
        for (let tries = 1; ; tries += 1) {
            sending.status = "sending";
            const { status, body, wait } = await this.#send(sending, key);
            const busy = status === 503 || body?.results?.[0]?.problem?.status === 503;
            if (busy && tries < TRIES) {
                sending.why = "The service is busy; trying again.";
                this.#tell(sending);
                await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(wait || 2 ** tries, LONGEST_WAIT_S)));
                continue;
            }
            const result = body?.results?.[0];
            if (result) {
                sending.photo = result.photo;
                this.#end(sending, result.status, result.problem?.detail ?? "");
            } else if (status < 0) {
                this.#end(sending, "cancelled", "Not sent.");
            } else {
                this.#end(sending, "failed", body?.detail ?? (status ? `The service answered ${status}.` : "The service does not answer."));
            }
            return;
        }
    }

    /**
     * XMLHttpRequest, for fetch does not say how much has been sent.
     * @param {Sending} sending @param {string} key
     * @returns {Promise<{status: number, body: any, wait: number}>}  status -1: cancelled; 0: no answer.
     */
    #send(sending, key) {
        return new Promise((resolve) => {
            const form = new FormData();
            if (sending.folder) form.append("folder", sending.folder);
            form.append("files", sending.file, sending.file.name);
            const request = new XMLHttpRequest();
            this.#requests.add(request);
            const end = (/** @type {number} */ status) => {
                this.#requests.delete(request);
                const wait = status > 0 ? Number(request.getResponseHeader("Retry-After")) || 0 : 0;
                resolve({ status, body: parsed(status > 0 ? request.responseText : ""), wait });
            };
            request.upload.onprogress = (event) => {
                sending.share = event.total ? event.loaded / event.total : 0;
                this.#tell(sending);
            };
            request.onload = () => end(request.status);
            request.onerror = () => end(0);
            request.onabort = () => end(-1);
            request.open("POST", `${PREFIX}/photos/upload`);
            request.setRequestHeader("Authorization", `Bearer ${this.session.key ?? ""}`);
            request.setRequestHeader("Idempotency-Key", key);
            request.send(form);
        });
    }

    /** @param {Sending} sending @param {Status} status @param {string} why */
    #end(sending, status, why) {
        Object.assign(sending, { status, why, share: status === "failed" || status === "cancelled" ? 0 : 1 });
        this.#tell(sending);
    }

    /** @param {Sending} sending */
    #tell(sending) {
        this.dispatchEvent(new CustomEvent("change", { detail: sending }));
    }
}

/** @param {string} text */
function parsed(text) {
    try {
        return JSON.parse(text);
    } catch {
        return null;
    }
}

/**
 * The files of a drop, those in folders as well.
 * @param {DataTransfer} transfer @returns {Promise<{file: File, folder: string}[]>}
 */
export async function droppedFiles(transfer) {
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
    if (entries.every((entry) => entry === null)) return [...transfer.files].map((file) => ({ file, folder: "" }));
    /** @type {{file: File, folder: string}[]} */
    const found = [];
    for (const entry of entries) if (entry) await collect(entry, "", found);
    return found;
}

/** @param {FileSystemEntry} entry @param {string} folder @param {{file: File, folder: string}[]} found */
async function collect(entry, folder, found) {
    if (entry.isFile) {
        const file = await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
        if (!file.name.startsWith(".")) found.push({ file, folder });
        return;
    }
    const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
    const inside = folder ? `${folder}/${entry.name}` : entry.name;
    for (;;) {
        /** @type {FileSystemEntry[]} */
        const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!some.length) return;
        for (const one of some) await collect(one, inside, found);
    }
}
