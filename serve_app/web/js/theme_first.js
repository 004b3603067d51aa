// Before anything is painted: a page that is to be dark never flashes white. No module, for modules run later.
(() => {
    const chosen = localStorage.getItem("kinlens.theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
