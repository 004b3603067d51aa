/** Light or dark: as the system has it, unless chosen here. */

const STORED = "kinlens.theme";

/** @returns {boolean} */
export function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Turns to the other one, and keeps it. */
export function toggleTheme() {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem(STORED, theme);
}
