/** A finger that stays on something. A mouse has other ways. */

const LONG_MS = 500;
const STILL_PX = 10;

/** @param {HTMLElement} element @param {(target: EventTarget | null) => void} pressed */
export function onLongPress(element, pressed) {
    let timer = 0;
    let fired = false;
    let x = 0;
    let y = 0;
    const end = () => clearTimeout(timer);
    element.addEventListener("pointerdown", (event) => {
        fired = false;
        if (event.pointerType !== "touch") return;
        [x, y] = [event.clientX, event.clientY];
        const { target } = event;
        timer = setTimeout(() => ((fired = true), pressed(target)), LONG_MS);
    });
    element.addEventListener("pointermove", (event) => Math.hypot(event.clientX - x, event.clientY - y) > STILL_PX && end());
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) element.addEventListener(name, end);
    // Neither the menu of the browser nor a click comes after it.
    element.addEventListener("contextmenu", (event) => fired && event.preventDefault());
    element.addEventListener(
        "click",
        (event) => {
            if (!fired) return;
            fired = false;
            event.preventDefault();
            event.stopPropagation();
        },
        { capture: true },
    );
}
