/** Addresses and views: the history of the browser, without reloading. */

/** @typedef {import("./types.js").View} View */
/** @typedef {import("./types.js").Place} Place */

export const HOME = "photos";
export const SIGN_IN = "sign-in";

/** @param {string} path @returns {Place} */
export function placeOf(path) {
    const url = new URL(path, location.origin);
    const [view, ...rest] = url.pathname.split("/").filter(Boolean).map(decoded);
    return { view: view ?? HOME, rest, query: url.searchParams };
}

/** @param {string} part @returns {string} */
function decoded(part) {
    try {
        return decodeURIComponent(part);
    } catch {
        return part;
    }
}

export class Router {
    /** @type {View | null} */
    #current = null;
    /** @type {Map<string, View>} */
    #made = new Map();
    /** @type {Record<string, () => View>} */
    #views = {};
    /** @type {(view: View, name: string, isNew: boolean) => void} */
    #show = () => {};

    /**
     * @param {Record<string, () => View>} views  Made when first entered, then kept.
     * @param {(view: View, name: string, isNew: boolean) => void} show
     */
    start(views, show) {
        this.#views = views;
        this.#show = show;
        addEventListener("popstate", () => this.#enter());
        document.addEventListener("click", (event) => this.#follow(event));
        this.#enter();
    }

    /** @param {string} path @param {{replace?: boolean}} [options] */
    go(path, { replace = false } = {}) {
        const url = new URL(path, location.origin);
        if (url.origin !== location.origin) return;
        const target = url.pathname + url.search;
        if (replace || target === location.pathname + location.search) history.replaceState(history.state, "", target);
        else history.pushState({ fromHere: true }, "", target);
        this.#enter();
    }

    /** To where the visitor came from, or to `path` where that was another site. @param {string} path */
    back(path) {
        if (history.state?.fromHere) history.back();
        else this.go(path, { replace: true });
    }

    /** Forgets what views have loaded. */
    forget() {
        this.#current?.leave();
        this.#current = null;
        this.#made.clear();
    }

    #enter() {
        const place = placeOf(location.pathname + location.search);
        const name = place.view in this.#views ? place.view : HOME;
        const view = this.#made.get(name) ?? this.#views[name]?.();
        if (!view) return;
        this.#made.set(name, view);
        const isNew = view !== this.#current;
        if (isNew) {
            this.#current?.leave();
            this.#current = view;
            this.#show(view, name, true);
        }
        view.enter(place);
        if (!isNew) this.#show(view, name, false);
    }

    /** A click on a link of ours. @param {MouseEvent} event */
    #follow(event) {
        if (event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
        const link = event.target instanceof Element ? event.target.closest("a") : null;
        if (!link || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
        const { view } = placeOf(link.pathname);
        if (link.pathname !== "/" && !(view in this.#views)) return;
        event.preventDefault();
        this.go(link.pathname + link.search);
    }
}
