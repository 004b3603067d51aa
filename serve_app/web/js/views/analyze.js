/** What the models see in a photo: faces, landmarks, what each looks like, and how good a picture of it this is. */

import { isAbort } from "../api.js";
import { cropImage, PictureChoice } from "../components/picture_choice.js";
import { fill, h } from "../dom.js";
import { counted } from "../format.js";

/** @typedef {import("../types.js").Face} Face */

const ALWAYS = ["age", "gender", "quality"];
const ASKED = { emotion: "Emotion", race: "Race" };
const SHARES = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 0 });

export class AnalyzeView {
    title = "Analyze";
    #abort = new AbortController();
    #said = h("p", { class: "said", role: "status" });
    #faces = h("ol", { class: "analyzed" });
    #lost = h("ul", { class: "lost hint" });
    /** @type {(() => void)[]} */
    #held = [];
    /** @type {Record<string, HTMLInputElement>} */
    #asked = Object.fromEntries(Object.keys(ASKED).map((name) => [name, h("input", { type: "checkbox" })]));

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.app = app;
        this.choice = new PictureChoice("A photo", () => void this.#look(), (key) => this.#show(key));
        const more = Object.entries(ASKED).map(([name, title]) => h("label", { class: "check" }, this.#asked[name], title));
        for (const box of Object.values(this.#asked)) box.addEventListener("change", () => void this.#look());
        this.element = h(
            "div",
            { class: "view" },
            h("div", { class: "view-head" }, h("h1", {}, "Analyze")),
            h("p", { class: "lead" }, "What the models see in a photo. Nothing is kept. It is how a face looks to a model, not what a person is."),
            h("fieldset", { class: "also" }, h("legend", {}, "Also guess"), ...more, h("p", { class: "hint" }, "These are wrong often, and more often for some people than for others. Asked for only when chosen.")),
            h("div", { class: "analyze" }, this.choice.element, h("div", {}, this.#said, this.#faces, this.#lost)),
        );
    }

    enter() {}

    leave() {
        this.#abort.abort();
    }

    async #look() {
        const { file } = this.choice;
        if (!file) return;
        this.#abort.abort();
        this.#abort = new AbortController();
        const { signal } = this.#abort;
        this.#clear();
        this.#said.textContent = "Looking at the photo";
        const actions = [...ALWAYS, ...Object.keys(ASKED).filter((name) => this.#asked[name].checked)];
        const form = new FormData();
        form.append("actions", actions.join(","));
        form.append("return_crops", "true");
        form.append("file", file, file.name);
        try {
            const answer = await this.app.api.ask("/face/analyze-face-advanced", form, signal);
            this.choice.draw(
                answer.image,
                answer.faces.map((/** @type {Face} */ face, /** @type {number} */ index) => ({ key: String(index + 1), bbox: face.bbox, landmarks: face.landmarks, label: String(index + 1) })),
            );
            const turned = answer.image.rotation_deg ? ` They were found after turning the picture by ${answer.image.rotation_deg} degrees.` : "";
            this.#said.textContent = answer.faces.length ? `${counted(answer.faces.length, "face")}${answer.faces.length > 1 ? ", the largest first" : ""}.${turned}` : "No face was found.";
            fill(this.#faces, ...answer.faces.map((/** @type {Face} */ face, /** @type {number} */ index) => this.#card(face, index)));
            fill(this.#lost, ...answer.unavailable.map((/** @type {any} */ { attribute, reason }) => h("li", {}, `${title(attribute)} cannot be had: ${reason}`)));
        } catch (error) {
            if (isAbort(error)) return;
            this.#said.textContent = error instanceof Error ? error.message : String(error);
        }
    }

    #clear() {
        for (const release of this.#held.splice(0)) release();
        fill(this.#faces);
        fill(this.#lost);
        this.choice.overlay.clear();
    }

    /** @param {string} key */
    #show(key) {
        this.choice.overlay.emphasise([key]);
        const card = /** @type {HTMLElement | undefined} */ (this.#faces.children[Number(key) - 1]);
        card?.scrollIntoView({ block: "nearest", behavior: "smooth" });
    }

    /** @param {Face} face @param {number} index */
    #card(face, index) {
        const crop = face.crop ? cropImage(face.crop) : null;
        if (crop) this.#held.push(crop[1]);
        const emphasise = () => this.choice.overlay.emphasise([String(index + 1)]);
        return h(
            "li",
            { class: "card analyzed-face", onpointerenter: emphasise },
            h("button", { type: "button", class: "analyzed-head", onclick: emphasise, onfocus: emphasise, "aria-label": `Show face ${index + 1}` }, crop?.[0], h("span", {}, `Face ${index + 1}`)),
            verdict(face),
            h("dl", { class: "facts" }, ...facts(face).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
        );
    }
}

/** Would enrolment take this face, and if not, why? @param {Face} face */
function verdict(face) {
    /** @type {{message: string}[] | null | undefined} */
    const reasons = face.attributes?.quality?.reasons;
    if (!reasons) return null;
    if (!reasons.length) return h("p", { class: "verdict good" }, "Good enough to recognise somebody by");
    return h("div", { class: "verdict" }, h("p", { class: "bad" }, "Too poor to recognise somebody by"), h("ul", { class: "reasons" }, ...reasons.map(({ message }) => h("li", {}, message))));
}

/** @param {Face} face @returns {[string, string][]} */
function facts(face) {
    const { age, gender, emotion, race, quality } = face.attributes ?? {};
    /** @type {[string, string][]} */
    const found = [["Detector's score", face.detection_score.toFixed(2)]];
    if (age) found.push(["Looks", age.low === null ? `${age.years} years old` : `${age.years} years old; for ${SHARES.format(age.level)} of faces the true age is ${age.low} to ${age.high}`]);
    for (const [name, one] of Object.entries({ gender, emotion, race })) if (one) found.push([title(name), classWords(one)]);
    if (quality) found.push(...qualityFacts(quality));
    return found;
}

/** @param {{top: string, probability: number, abstained: boolean}} one */
function classWords({ top, probability, abstained }) {
    return abstained ? `Not sure: ${top} with ${SHARES.format(probability)}` : `${top}, ${SHARES.format(probability)}`;
}

/** @param {any} quality @returns {[string, string][]} */
function qualityFacts({ size_px: size, sharpness, pose, exposure, occlusion }) {
    const over = [
        exposure.overexposed > 0.01 ? `${SHARES.format(exposure.overexposed)} burnt out` : "",
        exposure.underexposed > 0.01 ? `${SHARES.format(exposure.underexposed)} black` : "",
    ].filter(Boolean);
    return [
        ["Size", `${Math.round(size)} pixels`],
        ["Sharpness", `${sharpness.toFixed(2)} of 1`],
        ["Pose", poseWords(pose)],
        ["Light", [`brightness ${exposure.brightness.toFixed(2)}`, `contrast ${exposure.contrast.toFixed(2)}`, ...over].join(", ")],
        ["Covered", occlusion === "NONE" ? "not at all" : occlusion.toLowerCase()],
    ];
}

/** @param {{yaw_deg: number, pitch_deg: number, roll_deg: number}} pose */
function poseWords({ yaw_deg: yaw, pitch_deg: pitch, roll_deg: roll }) {
    const turns = [
        [yaw, "to the right", "to the left"],
        [pitch, "up", "down"],
        [roll, "tilted clockwise", "tilted anticlockwise"],
    ];
    const said = turns.filter(([angle]) => Math.abs(+angle) >= 5).map(([angle, more, less]) => `${Math.abs(Math.round(+angle))}\u00b0 ${+angle > 0 ? more : less}`);
    return said.length ? said.join(", ") : "straight at the camera";
}

/** @param {string} name */
function title(name) {
    return name[0].toUpperCase() + name.slice(1);
}
