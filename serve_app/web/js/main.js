/** The start: puts session, API, views and shell together. */

import { Api, ApiError, isAbort } from "./api.js";
import { Toasts } from "./components/toasts.js";
import { Pictures } from "./pictures.js";
import { Router, SIGN_IN } from "./router.js";
import { Session } from "./session.js";
import { Shell } from "./shell.js";
import { AnalyzeView } from "./views/analyze.js";
import { CompareView } from "./views/compare.js";
import { JobsView } from "./views/jobs.js";
import { JournalView } from "./views/journal.js";
import { NotAllowedView } from "./views/not_allowed.js";
import { PeopleView } from "./views/people.js";
import { PhotosView } from "./views/photos.js";
import { SearchView } from "./views/search.js";
import { SignInView } from "./views/sign_in.js";
import { SystemView } from "./views/system.js";

const session = new Session();
const router = new Router();
const toasts = new Toasts();
const api = new Api(session, toSignIn);
const pictures = new Pictures((path, signal) => api.blob(path, signal));
/** @type {import("./types.js").App} */
const app = { api, pictures, router, toasts, session };

const entries = [
    { name: "photos", title: "Photos", make: () => new PhotosView(app) },
    { name: "people", title: "People", make: () => new PeopleView(app) },
    { name: "search", title: "Search", make: () => new SearchView(app) },
    { name: "journal", title: "Journal", make: () => new JournalView(app) },
    { name: "compare", title: "Compare", make: () => new CompareView(app) },
    { name: "analyze", title: "Analyze", make: () => new AnalyzeView(app) },
    { name: "jobs", title: "Jobs", make: () => new JobsView(app) },
    { name: "system", title: "System", make: () => new SystemView(app) },
];
/** @type {Record<string, () => import("./types.js").View>} */
const views = { [SIGN_IN]: () => new SignInView(app) };
for (const { name, title, make } of entries) views[name] = () => (session.sees(name) ? make() : new NotAllowedView(app, title));

/** Where one came from comes back after signing in. @returns {boolean}  Not while signing in: that view says it itself. */
function toSignIn() {
    if (location.pathname === `/${SIGN_IN}`) return false;
    // Before the first view there is none to leave.
    if (!started) return true;
    session.signOut();
    router.forget();
    pictures.forget("");
    router.go(signInPath(), { replace: true });
    return true;
}

/** @returns {string} */
function signInPath() {
    const here = location.pathname + location.search;
    return `/${SIGN_IN}${here === "/" ? "" : `?next=${encodeURIComponent(here)}`}`;
}

function signOut() {
    session.signOut();
    // Loaded anew, the page has forgotten everything it showed.
    location.assign(`/${SIGN_IN}`);
}

let started = false;
const shell = new Shell(entries, signOut);
document.body.prepend(shell.element);
void start();

async function start() {
    const asked = session.key ? learn() : null;
    // What it was before will do, for the moment.
    if (!session.me) await asked;
    if (!session.key && location.pathname !== `/${SIGN_IN}`) history.replaceState(null, "", signInPath());
    started = true;
    router.start(views, (view, name, isNew) => shell.show(view, name, isNew, session));
}

/** What the key may do, which may have changed. */
async function learn() {
    try {
        session.know(await api.get("/me"));
        shell.offer(session);
    } catch (error) {
        // A key that is good no more; any other trouble the views tell of.
        if (!started && (isAbort(error) || (error instanceof ApiError && error.status === 401))) session.signOut();
    }
}
