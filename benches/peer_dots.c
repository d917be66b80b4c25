/* llama.cpp's product of a row of 1,024 weights with a token, some times over, for a counter of instructions (docs/performance.md,
 * "Types of few bits on ARM"): what examples/kernel_count.rs is for lowkey. Its own sources are in the source package of
 * llama-cpp-python, vendor/llama.cpp/ggml, here GGML:
 *     aarch64-linux-gnu-gcc -O3 -DNDEBUG -march=armv8.2-a+dotprod+fp16 -static -ffunction-sections -fdata-sections -Wl,--gc-sections \
 *         -I$GGML/include -I$GGML/src -I$GGML/src/ggml-cpu benches/peer_dots.c $GGML/src/ggml-cpu/arch/arm/quants.c \
 *         $GGML/src/ggml-cpu/quants.c -lm -o peer_dots          # for a Cortex-A72 -march=armv8-a
 *     peer_dots TYPE TIMES */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Tables that its sources name and these types do not read on ARM. */
float ggml_table_f32_f16[1 << 16], ggml_table_f32_e8m0_half[256], ggml_table_f32_ue4m3[256];

typedef void dot(int n, float *out, size_t, const void *weights, size_t, const void *token, size_t, int rows);
extern dot ggml_vec_dot_iq2_xxs_q8_K, ggml_vec_dot_iq2_xs_q8_K, ggml_vec_dot_iq2_s_q8_K, ggml_vec_dot_iq3_xxs_q8_K, ggml_vec_dot_iq3_s_q8_K,
    ggml_vec_dot_tq1_0_q8_K, ggml_vec_dot_tq2_0_q8_K, ggml_vec_dot_q1_0_q8_0, ggml_vec_dot_q2_0_q8_0;

static const struct {
    const char *name;
    dot *product;
    int bytes, weights;
} TYPES[] = {
    {"IQ2_XXS", ggml_vec_dot_iq2_xxs_q8_K, 66, 256}, {"IQ2_XS", ggml_vec_dot_iq2_xs_q8_K, 74, 256}, {"IQ2_S", ggml_vec_dot_iq2_s_q8_K, 82, 256},
    {"IQ3_XXS", ggml_vec_dot_iq3_xxs_q8_K, 98, 256}, {"IQ3_S", ggml_vec_dot_iq3_s_q8_K, 110, 256},   {"TQ1_0", ggml_vec_dot_tq1_0_q8_K, 54, 256},
    {"TQ2_0", ggml_vec_dot_tq2_0_q8_K, 66, 256},     {"Q1_0", ggml_vec_dot_q1_0_q8_0, 18, 128},      {"Q2_0", ggml_vec_dot_q2_0_q8_0, 18, 64},
};

int main(int argc, char **argv) {
    enum { COLUMNS = 1024, ROWS = 64, MOST = 4096 };
    static uint8_t rows[ROWS * MOST], token[4 * COLUMNS];
    for (size_t i = 0; i < sizeof rows; i++) rows[i] = rand();
    for (size_t i = 0; i < sizeof token; i++) token[i] = i & 63;
    for (size_t k = 0; argc == 3 && k < sizeof TYPES / sizeof *TYPES; k++) {
        if (strcasecmp(TYPES[k].name, argv[1])) continue;
        float sum = 0, one;
        size_t row_bytes = COLUMNS / TYPES[k].weights * TYPES[k].bytes;
        for (int i = 0, times = atoi(argv[2]); i < times; i++) {
            TYPES[k].product(COLUMNS, &one, 0, rows + i % ROWS * row_bytes, 0, token, 0, 1);
            sum += one;
        }
        return printf("%f\n", sum) < 0;
    }
    fprintf(stderr, "peer_dots TYPE TIMES\n");
    return 2;
}
