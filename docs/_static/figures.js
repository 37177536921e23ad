// Figures are drawn when they come into view; a page may hold twenty.
const seen = new IntersectionObserver(
    (entries) => {
        for (const { target, isIntersecting } of entries) {
            if (!isIntersecting) continue;
            seen.unobserve(target);
            const { data, layout } = JSON.parse(target.querySelector("script").textContent);
            Plotly.newPlot(target, data, { ...layout, autosize: true, width: undefined }, { responsive: true });
        }
    },
    { rootMargin: "600px" },
);
document.querySelectorAll(".drawn").forEach((figure) => seen.observe(figure));
