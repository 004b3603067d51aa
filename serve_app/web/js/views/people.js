/** People: all of them, one, or the questions whether two are the same. */

import { fill, h } from "../dom.js";
import { Board } from "../people/board.js";
import { PersonPage } from "../people/person_page.js";
import { Review } from "../people/review.js";

const REVIEW = "review";
/** No id of a person looks so. */

export class PeopleView {
    title = "People";
    element = h("div", { class: "view" });

    /** @param {import("../types.js").App} app */
    constructor(app) {
        this.board = new Board(app);
        this.page = new PersonPage(app);
        this.review = new Review(app);
    }

    /** @param {import("../types.js").Place} place */
    enter({ rest }) {
        const [id] = rest;
        const reviewing = id === REVIEW;
        fill(this.element, reviewing ? this.review.element : id ? this.page.element : this.board.element);
        if (!id || reviewing) this.page.stop();
        if (reviewing) this.review.start();
        else this.review.stop();
        if (id && !reviewing) void this.page.show(id);
        if (!id) this.board.reload();
    }

    leave() {
        this.board.stop();
        this.page.stop();
        this.review.stop();
    }
}
