// Multiplies two matrices through mlx-c, libmlx and OpenBLAS, and prints the rate in GFLOP/s.
// Exits 2 if the product is wrong and 3 if another BLAS than OpenBLAS did it.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <dlfcn.h>
#include <vector>

#include "mlx/c/mlx.h"

int main() {
    const int n = 1536;
    const int shape[] = { n, n };
    mlx_stream cpu = mlx_default_cpu_stream_new();

    // a[i][k] = i % 7 and b[k][j] = j % 5: every sum is n * (i % 7) * (j % 5), exact in a float.
    std::vector<float> rows(n * n), columns(n * n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            rows[i * n + j] = i % 7;
            columns[i * n + j] = j % 5;
        }
    mlx_array a = mlx_array_new_data(rows.data(), shape, 2, MLX_FLOAT32);
    mlx_array b = mlx_array_new_data(columns.data(), shape, 2, MLX_FLOAT32);

    double best = 0;
    mlx_array product = mlx_array_new();
    for (int run = 0; run < 3; run++) {
        auto start = std::chrono::steady_clock::now();
        mlx_matmul(&product, a, b, cpu);
        mlx_array_eval(product);
        std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::fmax(best, 2.0 * n * n * n / seconds.count() / 1e9);
    }

    const float *values = mlx_array_data_float32(product);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (values[i * n + j] != float(n * (i % 7) * (j % 5))) return 2;
    if (!dlsym(RTLD_DEFAULT, "scipy_openblas_get_config")) return 3;
    std::printf("%.0f\n", best);
}
