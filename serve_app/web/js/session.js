/** Who is signed in: the API key, in the memory of this page or of this tab, and nowhere else; and what it may do. */

/** @typedef {"read" | "enrol" | "write" | "admin"} Scope */
/** @typedef {{key_id: string, name: string, scopes: Scope[], collections: string[] | null, library: boolean}} Me */

const STORED = "kinlens.key";
const STORED_ME = "kinlens.me";
/** What a key must be good for to be shown a view. @type {Record<string, (me: Me) => boolean>} */
const VIEWS = {
    photos: inLibrary,
    people: inLibrary,
    search: inLibrary,
    journal: inLibrary,
    jobs: inLibrary,
    compare: reads,
    analyze: reads,
    system: (me) => reads(me) && me.collections === null,
};

export class Session {
    /** @type {string | null} */
    #key = sessionStorage.getItem(STORED);

    /** @type {Me | null} */
    #me = null;

    constructor() {
        const stored = this.#key && sessionStorage.getItem(STORED_ME);
        // A page that is loaded anew need not wait to know it.
        if (stored) this.know(JSON.parse(stored));
    }

    get key() {
        return this.#key;
    }

    get me() {
        return this.#me;
    }

    /**
     * Told once the key is known to be good. The service decides what is done; this decides what is shown.
     * @param {Me} me
     */
    know(me) {
        this.#me = me;
        if (sessionStorage.getItem(STORED) === this.#key) sessionStorage.setItem(STORED_ME, JSON.stringify(me));
        // Style sheets hide what is marked with `data-needs`.
        document.documentElement.dataset.may = me.library ? me.scopes.join(" ") : "";
    }

    /** Of what concerns the photo library. @param {Scope} scope @returns {boolean} */
    may(scope) {
        return this.#me === null || (this.#me.library && this.#me.scopes.includes(scope));
    }

    /** @param {string} view @returns {boolean} */
    sees(view) {
        return this.#me === null || (VIEWS[view]?.(this.#me) ?? true);
    }

    /** @param {string} key @param {boolean} keep  Until the tab is closed; else until the page is left or reloaded. */
    signIn(key, keep) {
        this.#key = key;
        if (keep) sessionStorage.setItem(STORED, key);
        else sessionStorage.removeItem(STORED);
    }

    signOut() {
        this.#key = null;
        this.#me = null;
        sessionStorage.removeItem(STORED);
        sessionStorage.removeItem(STORED_ME);
    }
}

/** @param {Me} me */
function reads(me) {
    return me.scopes.includes("read");
}

/** @param {Me} me */
function inLibrary(me) {
    return reads(me) && me.library;
}
