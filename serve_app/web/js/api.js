/** The client of the API: the key, queries, problems as errors, patience while the service is busy. */

/** @typedef {import("./types.js").Problem} Problem */
/** @typedef {Record<string, string | number | boolean | null | undefined | string[]>} Query */

export const PREFIX = "/api/v1";
const TRIES = 4;
const LONGEST_WAIT_S = 8;
export const PICTURE_TYPES = "image/avif,image/webp,image/*;q=0.8";

/** What went wrong, in a sentence for people (`message`) and a `code` for programs. */
export class ApiError extends Error {
    /** @param {number} status @param {Partial<Problem>} [problem] */
    constructor(status, problem = {}) {
        super(problem.detail || problem.title || (status ? `The service answered ${status}.` : "The service does not answer."));
        this.status = status;
        this.code = problem.code ?? "";
        this.details = problem.details ?? {};
        this.requestId = problem.request_id ?? "";
    }
}

/** @param {unknown} error @returns {boolean} */
export function isAbort(error) {
    return error instanceof DOMException && error.name === "AbortError";
}

/** @param {string} path  Below the prefix. @param {Query} [query] @returns {string} */
export function address(path, query = {}) {
    const given = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) {
        if (value === null || value === undefined || value === "") continue;
        for (const one of Array.isArray(value) ? value : [value]) given.append(name, String(one));
    }
    return PREFIX + path + (given.size ? `?${given}` : "");
}

export class Api {
    /**
     * @param {import("./session.js").Session} session
     * @param {() => boolean} refused  Called when the key is not accepted; true where it has been seen to.
     */
    constructor(session, refused) {
        this.session = session;
        this.refused = refused;
    }

    /** @param {string} path @param {Query} [query] @param {AbortSignal} [signal] @returns {Promise<any>} */
    async get(path, query, signal) {
        return (await this.fetch(address(path, query), { signal })).json();
    }

    /**
     * A write as JSON. It carries a key of its own, so that repeating it while the service is busy does it once.
     * @param {string} method @param {string} path @param {unknown} [body] @param {AbortSignal} [signal] @returns {Promise<any>}
     */
    async send(method, path, body, signal) {
        /** @type {Record<string, string>} */
        const headers = { "Idempotency-Key": newKey() };
        if (body !== undefined) headers["Content-Type"] = "application/json";
        const response = await this.fetch(address(path), { method, headers, body: body === undefined ? null : JSON.stringify(body), signal });
        return response.status === 204 ? null : response.json();
    }

    /** A question that comes with pictures. @param {string} path @param {FormData} form @param {AbortSignal} [signal] @returns {Promise<any>} */
    async ask(path, form, signal) {
        return (await this.fetch(address(path), { method: "POST", body: form, signal })).json();
    }

    /** @param {string} path  With the prefix. @param {AbortSignal} [signal] @returns {Promise<Blob>} */
    async blob(path, signal) {
        return (await this.fetch(path, { headers: { Accept: PICTURE_TYPES }, signal })).blob();
    }

    /**
     * Raises ApiError for anything but success. A 503 that says when to come again is obeyed, a few times.
     * @param {string} path @param {RequestInit} [options] @returns {Promise<Response>}
     */
    async fetch(path, options = {}) {
        const { key } = this.session;
        const headers = new Headers(options.headers);
        if (key) headers.set("Authorization", `Bearer ${key}`);
        for (let tries = 1; ; tries += 1) {
            let response;
            try {
                response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
            } catch (error) {
                if (isAbort(error)) throw error;
                throw new ApiError(0);
            }
            if (response.ok) return response;
            const wait = Number(response.headers.get("Retry-After"));
            if (response.status === 503 && wait > 0 && wait <= LONGEST_WAIT_S && tries < TRIES) {
                await pause(wait * 1000, options.signal);
                continue;
            }
            // Whoever asked is gone with the key: signed out meanwhile, or just now.
            if (response.status === 401 && (this.session.key !== key || this.refused())) throw new DOMException("signed out", "AbortError");
            throw new ApiError(response.status, await problemOf(response));
        }
    }
}

/** To tell a repetition of a write from another one. (`randomUUID` is not there on plain http.) @returns {string} */
export function newKey() {
    return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {number} milliseconds @param {AbortSignal | null} [signal] @returns {Promise<void>} */
export function pause(milliseconds, signal) {
    return new Promise((resolve, reject) => {
        signal?.throwIfAborted();
        const timer = setTimeout(resolve, milliseconds);
        signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
    });
}

/** @param {Response} response @returns {Promise<Partial<Problem>>} */
async function problemOf(response) {
    // What stands in front of the service answers in plain text.
    if (!response.headers.get("Content-Type")?.includes("json")) return {};
    return response.json().catch(() => ({}));
}
